"""The command ``cera lm-eval``: lm-evaluation-harness with CeRA adapters.

    cera lm-eval run --model hf --model_args peft=runs/smol_cera,dtype=bfloat16 ...
    cera lm-eval rescore runs/smol_cera/lm_eval/.../samples_gsm8k_local_....jsonl
    cera lm-eval rescore runs/smol_cera/eval/gsm8k/records.jsonl

All arguments but those of ``rescore`` are lm-eval's own; ``docs/lm_eval.md`` has the whole command. In
``--model_args``, ``peft`` may name a run directory, ``pretrained`` defaults to the adapter's base, and may name a base
in any way that ``cera.models.backbone`` accepts.
"""

import sys
from typing import Any

from cera.cli.paths import expand_home
from cera.cli.run_command import run_command
from cera.cli.shipped import argument_with_file
from cera.evaluation import answers
from cera.evaluation.lm_eval import require_lm_eval, rescore, resolve_model_args, try_template

NAMES = ("peft", "pretrained", "tokenizer")
"""Arguments of lm-eval's models that may be paths."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if arguments[:1] == ["rescore"]:
        return run_command(lambda: _rescore(arguments[1:]))
    return run_command(lambda: _run_harness(arguments))


def _rescore(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"rescore takes one file of samples or records, got {arguments}.")
    print(summary(rescore(expand_home(arguments[0]))))


def _run_harness(arguments: list[str]) -> None:
    require_lm_eval()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    sys.argv = ["cera lm-eval", *map(argument_with_file, arguments)]  # lm-eval reads its arguments from there
    setup_logging()
    harness = HarnessCLI()
    options = harness.parse_args()
    if getattr(options, "model_args", None):
        names = {key: expand_home(value) for key, value in options.model_args.items() if key in NAMES}
        options.model_args = resolve_model_args({**options.model_args, **names})
        if getattr(options, "apply_chat_template", False):
            try_template(options.model_args)
    harness.execute(options)


def summary(report: dict[str, Any]) -> str:
    """Return the report of ``rescore`` as text: the scores, then each disagreement with the end of its answer."""
    lines = [f"{report['problems']} problems; ours: {report['ours']:.2%}"]
    for name, counts in report["filters"].items():
        lines.append(
            f"{name}: {counts['lm_eval']:.2%}; both {counts['both']}, neither {counts['neither']}, "
            f"only ours {counts['only_ours']}, only lm-eval {counts['only_lm_eval']}"
        )
    for case in report["disagreements"]:
        gold = answers.extract(case["gold"])
        lines.append(
            f"\nproblem {case['doc_id']}, gold {gold.answer if gold else case['gold']!r}: ours {case['ours']!r} "
            f"({case['how']}), {case['filter']} {case['lm_eval']!r}; accepted by {case['accepted_by']}\n"
            f"  ...{case['text'][-160:]!r}"
        )
    return "\n".join(lines)
