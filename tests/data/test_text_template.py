"""Plain text in place of a chat template: training, samples and evaluations see the same prompt."""

import pytest
from conftest import SMOL
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.data.chat import ChatEncoder
from cera.data.datamodule import ChatData
from cera.data.generated import ReasoningGymWordProblems
from cera.data.template import TemplateError, render_prompt
from cera.data.text_template import set_text_template
from cera.models.backbone import load_tokenizer

TEXT = "Question: {question}\nAnswer: {answer}"
CONVERSATION = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is 3."}]


@pytest.fixture(scope="module")
def plain():
    tokenizer = load_tokenizer(SMOL)
    set_text_template(tokenizer, TEXT)
    return tokenizer


def test_the_text_and_its_prompt(plain) -> None:
    encoder = ChatEncoder(plain, 64)
    assert encoder.render(CONVERSATION) == "Question: What is 1 + 2?\nAnswer: It is 3.<|im_end|>"
    assert render_prompt(plain, CONVERSATION[:1]) == "Question: What is 1 + 2?\nAnswer:"


@settings(deadline=None, max_examples=50)
@given(*[st.text("aZ 0.,?'\"{}\\é\n", min_size=1, max_size=30).map(lambda text: f"x{text}x")] * 2)
def test_tokens_are_those_of_the_whole_text(plain, question, answer) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    document = ChatEncoder(plain, 256)(messages)
    assert document is not None
    whole = plain(f"Question: {question}\nAnswer: {answer}", add_special_tokens=False)["input_ids"]
    assert document.input_ids == [*whole, plain.eos_token_id]


def test_a_beginning_token_is_written_if_the_tokenizer_adds_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(SMOL)
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    set_text_template(tokenizer, TEXT)
    document = ChatEncoder(tokenizer, 64)(CONVERSATION)
    assert document is not None
    text = "Question: What is 1 + 2?\nAnswer: It is 3."
    assert document.input_ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert document.input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "text", ["", "{question}", "{answer} {question}", "{question} {answer}.", "{question}{question}{answer}"]
)
def test_a_text_without_question_and_answer_is_refused(smol, text) -> None:
    with pytest.raises(ValueError, match=r"data\.template must have \{question\} in it once"):
        ChatData(ReasoningGymWordProblems(size=10), smol, template=text)


def test_a_system_turn_is_refused(plain) -> None:
    with pytest.raises(TemplateError, match="plain text has no turn of the role system"):
        ChatEncoder(plain, 64)([{"role": "system", "content": "Be brief."}, *CONVERSATION])


def test_the_questions_of_a_run_have_it(smol) -> None:
    data = ChatData(ReasoningGymWordProblems(size=10), smol, validation_rows=2, template=TEXT)
    data.setup()
    question = next(data.questions())
    assert question.prompt == f"Question: {question.problem}\nAnswer:"
    data = ChatData(ReasoningGymWordProblems(size=10), smol, validation_rows=2)  # the tokenizer's own without it
    data.setup()
    assert next(data.questions()).prompt.startswith("<|im_start|>")
