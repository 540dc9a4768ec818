"""Labels cover the answers and nothing else, whatever the template, and the length policy is kept."""

import copy
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import ByteLevel

from cera.data.chat import FALLBACK_TEMPLATE, IGNORE, ChatEncoder, Document, TemplateError, check_messages

END = "<|im_end|>"


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant turns in alternation, after an optional system turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def labelled(tokenizer, document: Document) -> str:
    """The text of the tokens that carry loss."""
    pairs = zip(document.input_ids, document.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)
    return tokenizer.decode([label for label in document.labels if label != IGNORE])


@pytest.fixture
def bare(tokenizer):
    """The tokenizer of a base model, without a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer


# What is labelled


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize(
    "contents",
    [("What is 2 + 2?", "It is 4."), ("Hi", "Hello!", "And 3 + 3?", "6, I think.", "Thanks", "Welcome.")],
    ids=["single", "multi"],
)
def test_labels_cover_exactly_the_answers_and_their_end_of_turn(tokenizer, contents, system) -> None:
    messages = turns(*contents, system=system)
    encoder = ChatEncoder(tokenizer, max_length=512)
    document = encoder(messages)
    assert labelled(tokenizer, document) == "".join(answer + END for answer in contents[1::2])
    assert tokenizer.decode(document.input_ids) == encoder.render(messages)
    assert document.n_labels == sum(label != IGNORE for label in document.labels)


def test_each_answer_is_labelled_where_it_stands(tokenizer) -> None:
    document = ChatEncoder(tokenizer, max_length=512)(turns("yes", "yes", "no", "no"))
    runs, previous = [], IGNORE
    for label in document.labels:
        if label != IGNORE:
            if previous == IGNORE:
                runs.append([])
            runs[-1].append(label)
        previous = label
    assert [tokenizer.decode(run) for run in runs] == ["yes" + END, "no" + END]


def test_a_prompt_that_repeats_the_answer_carries_no_loss(tokenizer) -> None:
    document = ChatEncoder(tokenizer, max_length=512)(turns("Say four.", "four", system="four four"))
    assert labelled(tokenizer, document) == "four" + END


@pytest.mark.parametrize(
    "answer",
    ["def f(x):\n    if x:\n        return  1\n", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600!", "1\t2   3", "a\n\n\nb  "],
)
def test_white_space_and_multi_byte_characters_within_an_answer_are_labelled(tokenizer, answer) -> None:
    document = ChatEncoder(tokenizer, max_length=512)(turns("q", answer))
    assert labelled(tokenizer, document) == answer + END


def test_white_space_is_labelled_when_the_tokenizer_trims_its_offsets(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)  # as GPT-NeoX and others have it
    answer = "def f(x):\n    if x:\n        return 1"
    document = ChatEncoder(tokenizer, max_length=512)(turns("q", answer))
    assert labelled(tokenizer, document) == answer + END


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="<|>"), max_size=30)
ANSWER = st.builds(lambda first, rest: first + rest, st.sampled_from("aZ7(\u00e9"), PLAIN)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(PLAIN, ANSWER), min_size=1, max_size=3), st.none() | PLAIN)
def test_labels_decode_to_the_answers_for_any_text(tokenizer, exchanges, system) -> None:
    messages = turns(*(content for exchange in exchanges for content in exchange), system=system)
    document = ChatEncoder(tokenizer, max_length=2048)(messages)
    assert labelled(tokenizer, document) == "".join(answer + END for _, answer in exchanges)


def test_the_first_token_carries_no_loss(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
    document = ChatEncoder(tokenizer, max_length=64)(turns("not rendered", "one two three"))
    assert document.labels[0] == IGNORE
    assert document.labels[1:] == document.input_ids[1:] != []


# Without a chat template


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_fallback_template_ends_every_answer_with_eos(bare, system) -> None:
    messages = turns("Hi", "Hello", "More", "  Of what? \n", system=system)
    encoder = ChatEncoder(bare, max_length=512)
    assert bare.chat_template == FALLBACK_TEMPLATE
    document = encoder(messages)
    assert labelled(bare, document) == f"Hello{bare.eos_token}Of what?{bare.eos_token}"
    text = bare.decode(document.input_ids)
    opening = "### User:\nHi" if system is None else "### System:\nBe brief.\n\n### User:\nHi"
    assert text.startswith(bare.bos_token + opening)
    assert "### Assistant:\nHello" + bare.eos_token in text
    assert document.input_ids.count(bare.eos_token_id) == 2


def test_fallback_prompt_is_the_beginning_of_the_conversation(bare) -> None:
    encoder = ChatEncoder(bare, max_length=512)
    messages = turns("Hi", "Hello")
    prompt = encoder.render(messages[:1], add_generation_prompt=True)
    assert prompt.endswith("### Assistant:\n")
    assert encoder.render(messages).startswith(prompt + "Hello" + bare.eos_token)


def test_a_template_of_its_own_is_kept(tokenizer) -> None:
    before = tokenizer.chat_template
    ChatEncoder(tokenizer, max_length=8)
    assert tokenizer.chat_template == before != FALLBACK_TEMPLATE


# Length


def test_truncation_keeps_the_first_tokens(tokenizer) -> None:
    messages = turns("q", "one two three four five six seven")
    whole = ChatEncoder(tokenizer, max_length=512)(messages)
    cut = ChatEncoder(tokenizer, max_length=len(whole) - 3)(messages)
    assert cut.input_ids == whole.input_ids[:-3]
    assert cut.labels == whole.labels[:-3]
    assert 0 < cut.n_labels < whole.n_labels


def test_a_document_of_exactly_max_length_is_kept_whole_by_both_policies(tokenizer) -> None:
    messages = turns("q", "one two three")
    whole = ChatEncoder(tokenizer, max_length=512)(messages)
    for overlong in ("truncate", "drop"):
        assert ChatEncoder(tokenizer, len(whole), overlong)(messages) == whole


def test_drop_leaves_an_overlong_document_out(tokenizer) -> None:
    messages = turns("q", "one two three")
    whole = ChatEncoder(tokenizer, max_length=512)(messages)
    assert ChatEncoder(tokenizer, len(whole) - 1, "drop")(messages) is None


def test_a_document_whose_answer_is_cut_off_entirely_is_left_out(tokenizer) -> None:
    messages = turns("a long question " * 10, "the answer")
    whole = ChatEncoder(tokenizer, max_length=512)(messages)
    first_label = next(i for i, label in enumerate(whole.labels) if label != IGNORE)
    assert ChatEncoder(tokenizer, max_length=first_label)(messages) is None
    encoded = ChatEncoder(tokenizer, max_length=first_label + 1)(messages)
    assert encoded.n_labels == 1


def test_the_first_of_two_answers_survives_when_the_second_is_cut_off(tokenizer) -> None:
    messages = turns("q", "first", "a long question " * 10, "second")
    prompt = ChatEncoder(tokenizer, max_length=512).render(messages[:3], add_generation_prompt=True)
    cut = ChatEncoder(tokenizer, max_length=len(tokenizer(prompt)["input_ids"]))(messages)
    assert labelled(tokenizer, cut) == "first" + END


# What cannot be rendered


def test_a_conversation_that_an_assistant_turn_begins_is_encoded(tokenizer) -> None:
    messages = [{"role": "assistant", "content": "Welcome."}, *turns("Hi", "Hello")]
    document = ChatEncoder(tokenizer, max_length=512)(messages)
    assert labelled(tokenizer, document) == f"Welcome.{END}Hello{END}"


def test_a_template_that_drops_earlier_answers_is_refused(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    # as templates of reasoning models do: what the model thought is left out of all turns but the last
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = ChatEncoder(tokenizer, max_length=512)
    assert labelled(tokenizer, encoder(turns("q", "2+2</think>4"))) == "2+2</think>4" + END
    with pytest.raises(TemplateError, match="renders a turn differently once others follow it"):
        encoder(turns("q", "2+2</think>4", "r", "3+3</think>6"))


def test_a_template_whose_generation_prompt_is_not_in_the_turn_is_refused(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    with pytest.raises(TemplateError):
        ChatEncoder(tokenizer, max_length=512)(turns("q", "a"))


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(TemplateError, match="fast tokenizer"):
        ChatEncoder(SimpleNamespace(is_fast=False, chat_template=None), max_length=8)


# Messages


def test_good_messages_are_returned_as_they_are() -> None:
    messages = turns("q", "a", system="s")
    assert check_messages(messages) == turns("q", "a", system="s")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "empty"),
        (None, "empty"),
        ("hello", "empty"),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'"),
        ([{"content": "x"}], "unknown role None"),
        ([{"role": "user", "content": None}], "content of a user turn is NoneType"),
        ([{"role": "assistant", "content": ["x"]}], "content of a assistant turn is list"),
        ([{"role": "user", "content": "q"}], "no assistant turn"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}], "an assistant turn is empty"),
        (turns("q", "a", "r", ""), "an assistant turn is empty"),
    ],
)
def test_unusable_messages_are_refused_with_the_reason(messages, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_messages(messages)
