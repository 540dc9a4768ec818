"""A chat template is a program of somebody else's: whatever it does is one error, in bounded time and memory."""

import copy
import re
import signal
import subprocess
import sys
import time

import pytest
import templates

from cera.data import ChatEncoder, TemplateError, bounded
from cera.data.layout import end_of_turn
from cera.data.template import ConversationError, prepare_template, render, render_prompt

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def with_template(tokenizer, template: str):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(999999999) %}{% endfor %}", "OverflowError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% include 'x' %}", "TypeError"),
        ("{% for m in messages %}", "not valid in line 1"),
        ("{{ messages[0].content.nothing.more }}", "refuses"),
        ("{{ raise_exception('a\nlong\n' ~ 'x' * 10000) }}", "refuses the conversation: a long xxx"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
    ],
)
def test_whatever_a_template_raises_is_one_short_line(tokenizer, template, reason) -> None:
    tokenizer = with_template(tokenizer, template)
    for refused in (lambda: ChatEncoder(tokenizer, 64), lambda: render_prompt(tokenizer, QUESTION)):
        with pytest.raises(TemplateError, match=reason) as refusal:
            refused()
        assert len(str(refusal.value)) < 500
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within 1 s"),
        ("{{ 9 ** (9 ** 9) }}", "did not end within 1 s"),
        (
            "{% if messages[2] %}{{ (messages | length * 9) ** 99999999 }}{% endif %}",
            "did not end within 1 s",
        ),
        ("{{ 'x' * 20000000000 }}", "more than 1024 MiB of memory"),
        ("{% for i in range(99999) %}{{ messages[0].content * 99999 }}{% endfor %}", "more than 1024 MiB|did not end"),
        ("{{ 'x' * 9999999 }}", "renders more than 1048576 characters"),
    ],
)
def test_a_template_that_does_not_end_is_refused_in_bounded_time(tokenizer, monkeypatch, template, reason) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    tokenizer = with_template(tokenizer, template)
    start = time.monotonic()
    with pytest.raises(TemplateError, match=reason):
        prepare_template(tokenizer)
    assert time.monotonic() - start < 30


def test_a_template_that_does_not_end_for_one_content_fails_on_that_conversation(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% set m = messages[0] %}{{ m.role + m.content }}{% if m.content == 'Loop' %}LOOP{% endif %}"
    tokenizer = with_template(tokenizer, template.replace("LOOP", loop))
    before = signal.getsignal(signal.SIGPROF)
    with pytest.raises(ConversationError, match=r"did not end within 0\.3 s"):
        render(tokenizer, [{"role": "user", "content": "Loop"}])
    assert render(tokenizer, [{"role": "user", "content": "Go"}]) == "userGo"
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    assert signal.getsignal(signal.SIGPROF) == before


def test_a_tokenizer_without_a_template_needs_a_token_to_end_answers_with(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(TemplateError, match=r"neither a chat template nor an end-of-text token .* Set eos_token"):
        ChatEncoder(tokenizer, 64)


def test_a_child_that_waits_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(bounded, "WALL_SECONDS", 0.1)
    assert bounded.why_unbounded(lambda: time.sleep(600)) == "did not end within 0.1 s"
    assert bounded.why_unbounded(lambda: None) is None
    assert bounded.why_unbounded(lambda: 1 // 0) is None


def test_a_template_is_tried_once(tokenizer, monkeypatch) -> None:
    tokenizer = with_template(tokenizer, templates.CLOSING + "{# new #}")
    prepare_template(tokenizer)
    monkeypatch.setattr("cera.data.template.why_unbounded", lambda _: pytest.fail("tried again"))
    prepare_template(tokenizer)


# Prompts hold what they are made of


def test_a_prompt_without_a_turn_is_refused(tokenizer) -> None:
    tokenizer = with_template(tokenizer, templates.WITHOUT_SYSTEM)
    assert render_prompt(tokenizer, QUESTION) == render(tokenizer, QUESTION, add_generation_prompt=True)
    with pytest.raises(ConversationError, match="leaves out or changes the system turn 'Be brief"):
        render_prompt(tokenizer, [{"role": "system", "content": "Be brief."}, *QUESTION])


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>"])
def test_a_prompt_whose_content_would_end_its_turn_is_refused(tokenizer, marker) -> None:
    with pytest.raises(ConversationError, match=re.escape(f"has '{marker}' in it")):
        render_prompt(tokenizer, [{"role": "user", "content": f"a{marker}b"}])
    assert "<filename>" in render_prompt(tokenizer, [{"role": "user", "content": "git add <filename>"}])


@pytest.mark.parametrize(("largest", "status"), [(10**13, -signal.SIGVTALRM), (1000, 0)])
def test_a_long_operation_in_c_ends_the_process(largest: int, status: int) -> None:
    code = (
        "import runpy, sys, time\n"
        "bounded = runpy.run_path(sys.argv[1])\n"
        "bounded['time_limit'].__wrapped__.__globals__['CPU_SECONDS'] = 0.3\n"
        f"with bounded['time_limit'](): sum(range({largest}))\n"
        "end = time.process_time() + 1\n"
        "while time.process_time() < end: pass\n"  # no limit is left behind
    )
    process = subprocess.run([sys.executable, "-c", code, str(bounded.__file__)], timeout=60, check=False)
    assert process.returncode == status


def test_the_end_of_a_turn_is_the_templates_whatever_the_tokenizer_names(tokenizer) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer = with_template(tokenizer, tokenizer.chat_template)
    tokenizer.eos_token = "<|endoftext|>"  # as in base models whose template is that of their instructed ones
    assert end_of_turn(tokenizer) == {end} != {tokenizer.eos_token_id}
    plain = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}"
    assert end_of_turn(with_template(tokenizer, plain)) == set()
    assert end_of_turn(with_template(tokenizer, "{{ raise_exception('no') }}")) == set()
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == set()
    prepare_template(tokenizer)  # the fallback's
    assert end_of_turn(tokenizer) == {tokenizer.eos_token_id}
