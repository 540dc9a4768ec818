"""A CeRA adapter in lm-evaluation-harness, run as a user does, and its verdicts against ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import environment
from conftest import REPOSITORY
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import cera
from cera.evaluation.generation import Sampling, TransformersBackend
from cera.evaluation.lm_eval import judge_by_lm_eval, rescore, resolve_model_args
from cera.evaluation.lm_eval_command import main
from cera.evaluation.prompts import Prompt

TASK = REPOSITORY / "configs" / "lm_eval" / "gsm8k_local.yaml"
GOLD = "1000 + 234 = <<1000+234=1234>>1234\n#### 1234"
STRICT, FLEXIBLE, OURS = "strict-match", "flexible-extract", "ours"
CASES = {
    # answer to a question whose gold answer is 1234: who accepts it
    "1000 + 234 = 1234\n#### 1234": {STRICT, FLEXIBLE, OURS},
    "#### 1,234": {STRICT, FLEXIBLE, OURS},
    "#### 1234 apples": {STRICT, FLEXIBLE, OURS},
    "#### 99": set(),
    "I do not know.": set(),
    "#### $1234": {FLEXIBLE, OURS},
    "The answer is 1234.": {FLEXIBLE, OURS},
    "#### 1234.00": {OURS},
    "#### 1234\n\nTom has 5 apples.": {STRICT, OURS},
    "#### 99\nWait.\n#### 1234": {FLEXIBLE, OURS},
    "It is \\boxed{1234}.\n#### 99": {OURS},
    "The answer is 99. Of those, 5 are red and 1234 are not": {FLEXIBLE},
    "#### 1234/2": {STRICT},
}


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory) -> Path:
    """A run directory of the tiny Llama, whose CeRA branches are large enough to change every token."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), cera.CeraConfig(r=8))
    for name, parameter in model.named_parameters():
        if "cera_down" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    run = tmp_path_factory.mktemp("run")
    model.save_pretrained(run / "adapter")
    (run / "config.yaml").write_text(f"model: {{base: {tiny_llama}}}\n")
    return run


def samples_of(folder: Path) -> Path:
    (file,) = folder.rglob("samples_gsm8k_local_*.jsonl")
    return file


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_documented_command_evaluates_the_adapter(adapter, tiny_llama, tokenizer, gsm8k, tmp_path):
    pytest.importorskip("lm_eval")
    arguments = [
        sys.executable, "-m", "cera", "lm-eval", "run", "--model", "hf",
        "--model_args", f"peft={adapter},dtype=float32", "--tasks", str(TASK), "--apply_chat_template",
        "--device", "cpu", "--batch_size", "4", "--limit", "4", "--gen_kwargs", "max_gen_toks=12",
        "--output_path", str(tmp_path), "--log_samples",
    ]  # fmt: skip
    offline = {"HF_DATASETS_OFFLINE": "1", "CERA_DATA_DIR": str(gsm8k.parent)}
    done = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment() | offline, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.rglob("results_*.json")
    assert {f"exact_match,{STRICT}", f"exact_match,{FLEXIBLE}"} <= set(
        json.loads(results.read_text())["results"]["gsm8k_local"]
    )

    strict = [sample for sample in read(samples_of(tmp_path)) if sample["filter"] == STRICT]
    problems = [json.loads(line) for line in (gsm8k / "test.jsonl").read_text().splitlines()[:4]]
    prompts = [Prompt().render(row["question"], tokenizer) for row in problems]
    assert [sample["arguments"]["gen_args_0"]["arg_0"] for sample in strict] == prompts
    assert [sample["target"] for sample in strict] == [row["answer"] for row in problems]

    def answered(model) -> list[str]:
        backend = TransformersBackend(model.eval(), tokenizer, 4)
        answers = dict(backend.generate(prompts, [str(i) for i in range(4)], Sampling(max_new_tokens=12)))
        return [answers[i][0].text for i in range(4)]

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    by_base = answered(base)
    theirs = [sample["resps"][0][0] for sample in strict]
    assert theirs == answered(PeftModel.from_pretrained(base, adapter / "adapter"))
    assert all(ours != other for ours, other in zip(theirs, by_base, strict=True))
    assert rescore(samples_of(tmp_path))["problems"] == 4


@pytest.fixture(scope="module")
def judged(tmp_path_factory, gsm8k) -> Path:
    """``CASES`` as lm-eval's own task judges them, in the form of ``--log_samples``."""
    pytest.importorskip("lm_eval")
    records = [{"key": str(i), "prompt": "How many?", "gold": GOLD, "samples": [text]} for i, text in enumerate(CASES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CERA_DATA_DIR", str(gsm8k.parent))
        lines = [json.dumps(sample, default=float) for sample in judge_by_lm_eval(records)]
    file = tmp_path_factory.mktemp("judged") / "samples.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_rescore_counts_and_lists_every_disagreement(judged):
    report = rescore(judged)
    n = len(CASES)
    assert report["problems"] == n
    assert report["ours"] == sum(OURS in by for by in CASES.values()) / n
    for name in (STRICT, FLEXIBLE):
        assert report["filters"][name] == {
            "lm_eval": sum(name in by for by in CASES.values()) / n,
            "both": sum({name, OURS} <= by for by in CASES.values()),
            "neither": sum(not {name, OURS} & by for by in CASES.values()),
            "only_ours": sum(OURS in by and name not in by for by in CASES.values()),
            "only_lm_eval": sum(name in by and OURS not in by for by in CASES.values()),
        }
    listed = {(entry["text"], entry["filter"]): entry["accepted_by"] for entry in report["disagreements"]}
    assert listed == {
        (text, name): "ours" if OURS in by else "lm_eval"
        for text, by in CASES.items()
        for name in (STRICT, FLEXIBLE)
        if (OURS in by) != (name in by)
    }
    money = next(entry for entry in report["disagreements"] if entry["text"] == "#### $1234")
    assert (money["how"], money["lm_eval"], money["gold"]) == ("hashes", "[invalid]", GOLD)


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    status = main([*arguments])
    return status, *capsys.readouterr()


def test_rescore_command(judged, monkeypatch, capsys):
    status, out, _ = command(monkeypatch, capsys, "rescore", str(judged))
    assert status == 0
    assert "13 problems; ours: 69.23%\nstrict-match: 38.46%; both 4, neither 3, only ours 5, only lm-eval 1\n" in out
    assert "gold '1234': ours '$1234' (hashes), strict-match '[invalid]'; accepted by ours\n  ...'#### $1234'" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("{not json}\n", "line 1, is no sample"),
        ('{"doc_id": 0, "target": ""}\n', "lacks exact_match"),
    ],
)
def test_what_is_no_samples_file(text, says, tmp_path, monkeypatch, capsys):
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    status, _, err = command(monkeypatch, capsys, "rescore", str(file))
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert str(file) in err


def test_mistakes_are_one_line(tmp_path, tiny_llama, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("cera.data.bounded.CPU_SECONDS", 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    endless = shutil.copytree(tiny_llama, tmp_path / "endless")
    loops = "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2
    (endless / "chat_template.jinja").write_text(loops)
    template = ["--apply_chat_template", "--tasks", str(TASK)]
    for arguments, says in (
        (["rescore"], "takes one file"),
        (["rescore", str(tmp_path / "none.jsonl")], "no such file"),
        (["run", "--model", "hf", "--model_args", f"peft={tmp_path}"], "neither a run nor an adapter"),
        (["run", "--model", "hf", "--model_args", "pretrained=package://nowhere/m.gguf"], "nowhere is not installed"),
        (
            ["run", "--model", "hf", "--model_args", "pretrained=~/endless", *template],
            "template did not end within 1 s",
        ),
    ):
        status, _, err = command(monkeypatch, capsys, *arguments)
        assert status == 2
        assert says in err


def test_without_lm_eval_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # Python's own mark of a package that cannot be imported
    status, _, err = command(monkeypatch, capsys, "run", "--tasks", "gsm8k")
    assert (status, "pip install 'cera[lm-eval]'" in err) == (2, True)


def test_model_args_name_runs_and_bases(adapter, tiny_llama, smol, tmp_path):
    folder = str(adapter / "adapter")
    assert resolve_model_args({"peft": str(adapter)}) == {"peft": folder, "pretrained": tiny_llama}
    assert resolve_model_args({"peft": folder, "dtype": "float32"}) == {
        "peft": folder, "pretrained": tiny_llama, "dtype": "float32",
    }  # fmt: skip
    other = str(shutil.copytree(tiny_llama, tmp_path / "other"))
    assert resolve_model_args({"peft": str(adapter), "pretrained": other})["pretrained"] == other
    assert resolve_model_args({"peft": "owner/adapter", "pretrained": "gpt2"}) == {
        "peft": "owner/adapter",
        "pretrained": "gpt2",
    }
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ messages[0].content }}")  # of a run on plain text
    assert resolve_model_args({"peft": str(own)})["tokenizer"] == str(own)
    assert resolve_model_args({"peft": str(own), "tokenizer": "gpt2"})["tokenizer"] == "gpt2"
    assert (Path(resolve_model_args({"pretrained": smol})["pretrained"]) / "config.json").is_file()


def test_a_run_on_a_quantized_base_is_not_evaluated_in_full_precision_unasked(adapter, tiny_llama, tmp_path):
    (tmp_path / "adapter").symlink_to(adapter / "adapter")
    (tmp_path / "config.yaml").write_text(f"model: {{base: {tiny_llama}, quantization: nf4}}\n")
    with pytest.raises(ValueError, match="nf4"):
        resolve_model_args({"peft": str(tmp_path)})
    assert resolve_model_args({"peft": str(tmp_path / "adapter")})["pretrained"] == tiny_llama
