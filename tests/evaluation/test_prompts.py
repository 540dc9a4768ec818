"""How a question is asked."""

import pytest

from cera.cli.compose import compose
from cera.data.chat import ChatEncoder
from cera.evaluation.prompts import Example, Prompt

EXAMPLES = [Example("1 + 1?", "#### 2"), Example("2 + 2?", "#### 4")]


def test_the_chat_prompt_is_what_training_sees_before_the_answer(tokenizer):
    encoder = ChatEncoder(tokenizer, 512)
    text, spans = encoder.answer_spans([{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}])
    assert Prompt().render("3 + 3?", tokenizer) == text[: spans[0][0]]


def test_examples_are_earlier_turns_in_the_same_words(tokenizer):
    prompt = Prompt(system="Be brief.", question="Solve: {question}", examples=EXAMPLES)
    assert prompt.messages("3 + 3?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Solve: 1 + 1?"},
        {"role": "assistant", "content": "#### 2"},
        {"role": "user", "content": "Solve: 2 + 2?"},
        {"role": "assistant", "content": "#### 4"},
        {"role": "user", "content": "Solve: 3 + 3?"},
    ]
    shown = prompt.render("3 + 3?", tokenizer)
    assert shown.index("Be brief.") < shown.index("#### 2") < shown.index("#### 4") < shown.index("Solve: 3 + 3?")


@pytest.mark.parametrize("shots", [0, 1, 2, None])
def test_shots_are_the_first_examples(shots):
    turns = Prompt(examples=EXAMPLES, shots=shots).messages("3 + 3?")
    assert [t["content"] for t in turns if t["role"] == "assistant"] == [e.answer for e in EXAMPLES[:shots]]


def test_plain_text(tokenizer):
    prompt = Prompt(style="plain", examples=EXAMPLES[:1])
    expected = "Question: 1 + 1?\n\nAnswer: #### 2\n\nQuestion: a {b} {} %s?\n\nAnswer:"
    assert prompt.render("a {b} {} %s?", tokenizer).removeprefix(tokenizer.bos_token or "") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": "no place"}, r"prompt\.question"),
        ({"question": "{question} {question}"}, r"prompt\.question"),
        ({"examples": EXAMPLES, "shots": 3}, r"prompt\.shots must be between 0 and the 2 examples, got 3"),
        ({"shots": -1}, r"prompt\.shots"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Prompt(**settings)


@pytest.mark.parametrize("name", ["gsm8k_4shot", "math_4shot"])
def test_the_examples_of_the_configurations_are_right(name):
    """Sums that stand in them hold; their answers are extracted by the rules that judge the model's."""
    import re

    from cera.evaluation.answers import extract

    for example in compose(f"configs/prompts/{name}.yaml")["evaluation"]["prompt"]["examples"]:
        extraction = extract(example["answer"])
        assert extraction is not None
        assert extraction.extracted_by == ("hashes" if name.startswith("gsm8k") else "boxed")
        for left, right in re.findall(r"([\d.]+(?: [-+*] [\d.]+)+) = \$?([\d.]+)(?=[\s.,])", example["answer"]):
            assert eval(left) == pytest.approx(float(right.rstrip(".")))
