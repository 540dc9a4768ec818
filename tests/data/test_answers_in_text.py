"""Answers are found in what any template renders, and what precedes each is what inference sees for it."""

import copy
import logging
import time
from datetime import datetime
from itertools import groupby
from typing import Any

import pytest
import templates
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import ByteLevel

from cera.data.chat import FALLBACK_TEMPLATE, IGNORE, ChatEncoder, TemplateError
from cera.data.layout import additions

END, EOS = "<|im_end|>", "<|im_end|>"


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def encoder(tokenizer: Any, template: str | None, max_length: int = 2048) -> ChatEncoder:
    if template is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
    return ChatEncoder(tokenizer, max_length)


def labelled(encoder: ChatEncoder, messages: list[dict[str, str]]) -> list[str]:
    """The text of each run of tokens with loss."""
    document = encoder(messages)
    runs = groupby(document.labels, key=lambda label: label != IGNORE)
    return [encoder.tokenizer.decode(list(run)) for has_loss, run in runs if has_loss]


def prompts(encoder: ChatEncoder, messages: list[dict[str, str]]) -> list[list[int]]:
    """The token ids before each run of tokens with loss."""
    document = encoder(messages)
    starts = [i for i, label in enumerate(document.labels) if label != IGNORE and document.labels[i - 1] == IGNORE]
    return [document.input_ids[:start] for start in starts]


def tokenized(encoder: ChatEncoder, messages: list[dict[str, str]]) -> list[int]:
    """What inference reads."""
    text = encoder.render(messages, add_generation_prompt=True)
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (templates.SPACE, turns("Is 7 prime?", "Yes."), ["Yes." + EOS]),
        (templates.SPACE, turns("Is 8 prime?", "No", "And 9?", "No"), ["No" + EOS] * 2),
        (templates.SPACE, [{"role": "assistant", "content": "Hello."}, *turns("q", "a")], ["Hello." + EOS, "a" + EOS]),
        (None, turns("Body?", "    return 1"), ["    return 1" + END]),
        (None, turns("q", "\n\n a \n"), ["\n\n a \n" + END]),
        (templates.CLOSING, turns("q", "a"), [f"a{END}\n<|endoftext|>"]),
        (templates.CLOSING, turns("q", "a", "r", "b"), ["a" + END, f"b{END}\n<|endoftext|>"]),
        (templates.CLOSING, turns("q", "a", "r"), ["a" + END]),
        (templates.CLOSING_IN_WORDS, turns("q", "a", "r", "b"), ["a" + END, f"b{END}\nend of chat"]),
        (templates.TRIMMING, turns(" q", "  a\n", "r", "b", system="s "), ["a" + END, "b" + END]),
        (templates.MERGED_SYSTEM, turns("q", "a", "r", "b", system="s"), [" a" + EOS, " b" + EOS]),
        (templates.THOUGHTS, turns("q", "a", "r", "b"), ["a" + END, f"<think>\n\n</think>\n\nb{END}"]),
        (templates.THOUGHTS, turns("q", "<think>\nt\n</think>\n\na"), [f"<think>\nt\n</think>\n\na{END}"]),
        (templates.THOUGHTS, turns("q", "<think>t</think>a"), [f"<think>\nt\n</think>\n\na{END}"]),
        (templates.NUMBERED, turns("q", "a", "r", "b"), ["a" + EOS, "b" + EOS]),
        (templates.WITH_DATE, turns("q", "a", "r", "b"), ["a" + END, "b" + END]),
    ],
)
def test_labels_are_the_answers_and_prompts_are_inferences(tokenizer, template, messages, expected) -> None:
    encode = encoder(tokenizer, template)
    assert labelled(encode, messages) == expected
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
    texts = [encode.render(messages[:i], add_generation_prompt=True) for i in answers]
    assert [encode.tokenizer.decode(ids) for ids in prompts(encode, messages)][-len(texts) :] == texts


def test_a_template_may_write_the_date_and_the_day_may_change(tokenizer, monkeypatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2999, 1, 1)

    encode = encoder(tokenizer, templates.WITH_DATE)
    assert labelled(encode, turns("q", "a")) == ["a" + END]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert "2999-01-01" in encode.render(turns("q", "a"))
    assert labelled(encode, turns("q", "a")) == ["a" + END]


def test_white_space_that_offsets_leave_out_is_no_part_of_the_first_token_of_an_answer(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    encode = encoder(tokenizer, templates.SPACE)
    messages = turns("Is 7 prime?", "Yes.")
    assert labelled(encode, messages) == ["Yes." + EOS]
    assert prompts(encode, messages) == [tokenized(encode, messages[:1])]


TEMPLATES = [None, FALLBACK_TEMPLATE, templates.SPACE, templates.CLOSING, templates.TRIMMING, templates.MERGED_SYSTEM]
TEXT = st.text(st.sampled_from("ab 1.:\n\t#?A\u00e9\U0001f600"), max_size=12)
CONTENT = st.lists(TEXT | st.sampled_from([END, "<|im_start|>", "<filename>", "### User:"]), max_size=4).map("".join)
ANSWER = CONTENT.filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEMPLATES), st.lists(st.tuples(CONTENT, ANSWER), min_size=1, max_size=3), st.none() | CONTENT)
def test_an_answers_prompt_is_what_inference_sees_for_any_text(tokenizer, template, exchanges, system) -> None:
    encode = encoder(tokenizer, template)
    messages = turns(*(content for exchange in exchanges for content in exchange), system=system)
    document = encode(messages)
    text = encode.render(messages)
    assert encode.tokenizer.decode(document.input_ids) == text
    _, spans = encode.answer_spans(messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i, (start, end) in zip(answers, spans, strict=True):
        assert text[:start] == encode.render(messages[:i], add_generation_prompt=True)
        assert messages[i]["content"].strip() in text[start:end]
    assert labelled(encode, messages) == [text[start:end] for start, end in spans]
    first = prompts(encode, messages)[0]
    if not any(token in "".join(exchanges[0][0] + (system or "")) for token in (END, "<|im_start|>")):
        assert first == tokenized(encode, messages[: answers[0]])
    plain = encode([{**message, "content": "x"} for message in messages])
    for token in (END, "<|im_start|>"):  # contents neither begin nor end a turn
        number = encode.tokenizer.convert_tokens_to_ids(token)
        assert document.input_ids.count(number) == plain.input_ids.count(number)


def test_special_tokens_are_text_in_answers_and_read_as_by_inference_in_prompts(tokenizer) -> None:
    encode = encoder(tokenizer, None)
    document = encode(turns("git add <filename>", "git add <filename>"))
    assert labelled(encode, turns("git add <filename>", "git add <filename>")) == ["git add <filename>" + END]
    assert document.input_ids.count(tokenizer.convert_tokens_to_ids("<filename>")) == 1


# Long rows


@pytest.mark.parametrize("unit", ["word ", "a", " ", "\n", "<|im_end|>", "caf\u00e9\U0001f600"])
def test_the_beginning_of_a_long_row_is_what_the_whole_row_gives(tokenizer, unit) -> None:
    messages = turns("q", "x" + unit * 3000)
    whole = encoder(tokenizer, None, max_length=10**6)(messages)
    for length in (40, 200):
        cut = encoder(tokenizer, None, max_length=length)(messages)
        assert (cut.input_ids, cut.labels) == (whole.input_ids[:length], whole.labels[:length])
        assert (ChatEncoder(tokenizer, length, "drop")(messages) is None) == (len(whole) > length)


def test_a_long_row_is_cut_before_it_is_split_into_tokens(tokenizer, monkeypatch) -> None:
    encode = encoder(tokenizer, None, max_length=128)
    seen = []
    split = encode._split._tokens
    monkeypatch.setattr(encode._split, "_tokens", lambda text: seen.append(len(text)) or split(text))
    start = time.monotonic()
    assert len(encode(turns("q", "word " * 10**6))) == 128
    assert encode(turns("word " * 10**6, "a")) is None
    assert max(seen) < 10_000
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("template", [None, FALLBACK_TEMPLATE, templates.CLOSING, templates.SPACE])
def test_many_turns_take_time_in_proportion(tokenizer, template) -> None:
    encode = encoder(tokenizer, template, max_length=10**6)
    messages = turns(*(f"turn {i}" for i in range(2000)))
    start = time.monotonic()
    document = encode(messages)
    assert time.monotonic() - start < 5
    ends = [run.rstrip() for run in labelled(encode, messages)]
    assert len(ends) == 1000
    assert ends[499].startswith("turn 999")
    assert document.n_labels < len(document)


# What a template leaves out, changes or adds


def test_turns_that_a_template_leaves_out_are_reported_once(tokenizer, caplog) -> None:
    encode = encoder(tokenizer, templates.WITHOUT_SYSTEM)
    with caplog.at_level(logging.WARNING, "cera.data.chat"):
        for _ in range(2):
            assert labelled(encode, turns("q", "a", system="Be brief.")) == ["a" + END]
    assert caplog.messages == ["the chat template leaves out turns of the role system, such as 'Be brief.'"]


def test_answers_without_an_end_are_reported_once(tokenizer, caplog) -> None:
    encode = encoder(tokenizer, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    with caplog.at_level(logging.WARNING, "cera.data.chat"):
        for _ in range(2):
            assert labelled(encode, turns("q", "a")) == ["assistant: a"]
    assert caplog.messages == ["the chat template writes nothing at the end of an answer, so no model learns to stop"]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m.role + m.content | upper }}{% endfor %}", "changes the user turn 'quince'"),
        ("{% for m in messages %}{{ m.role + m.content.split('i')[0] }}{% endfor %}", "changes|leaves out"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out an answer"),
        ("{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}", "out of order"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "renders a turn twice"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Bot:{% endif %}", "prompt"),
    ],
)
def test_a_template_that_changes_contents_is_refused(tokenizer, template, complaint) -> None:
    with pytest.raises(TemplateError, match=complaint):
        encoder(tokenizer, template)(turns("quince", "medlar pie"))


def test_what_a_template_adds_is_said(tokenizer) -> None:
    (sentence,) = additions(tokenizer)
    assert "without a system turn" in sentence
    assert "helpful AI assistant named SmolLM" in sentence
    for template in (FALLBACK_TEMPLATE, templates.CLOSING, templates.SPACE, templates.WITHOUT_SYSTEM):
        assert additions(encoder(tokenizer, template).tokenizer) == []
    both = additions(encoder(tokenizer, templates.WITH_DATE).tokenizer)
    assert len(both) == 2
    assert all("Today is" in sentence for sentence in both)
