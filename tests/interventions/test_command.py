"""``cera intervene`` end to end on a tiny model, and its errors."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import cera
from cera.interventions.command import main

TASK = """
evaluation:
  name: tiny
  task:
    class_path: cera.evaluation.tasks.Chats
    init_args:
      dataset:
        class_path: cera.data.ReasoningGymWordProblems
        init_args: {size: 4, skip: 10}
  sampling: {max_new_tokens: 3}
"""
SMALL = ["--rows", "4", "--fit-rows", "8"]


def saved(base: str, folder: Path, **options) -> Path:
    """An adapter on disk whose W_down is not zero."""
    torch.manual_seed(0)
    config = cera.CeraConfig(**{"r": 8, "init_weights": False, "task_type": "CAUSAL_LM", **options})
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_everything_at_once(tiny_llama, two_runs, tmp_path, capsys):
    adapter = saved(tiny_llama, tmp_path / "adapter")
    (tmp_path / "task.yaml").write_text(TASK)
    more = ["--against", str(two_runs / "lora"), "--by-layer", "--layer-rows", "1", "--layers", "1"]
    arguments = [str(adapter), *SMALL, *more, "--level", "full", "--task", str(tmp_path / "task.yaml")]
    assert main(arguments) == 0, capsys.readouterr().err
    printed, out = capsys.readouterr().out, adapter / "interventions"
    assert re.search(r"nats per answer token: \d+ teacher-forced tokens of 4 problems", printed)
    results = json.loads((out / "interventions.json").read_text())
    for name in ("layers", "conditions", "deciles", "by_layer", "exact_match"):
        assert len(rows(out / f"{name}.csv")) == len(results[name]) > 0, name
    assert (out / "interventions.png").read_bytes().startswith(b"\x89PNG")

    labels = ["whole", "none", "gain full", "offset full", "affine full", "curvature full"]
    assert [row["condition"] for row in results["conditions"]] == labels
    layers = [f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")]
    assert list(dict.fromkeys(row["layer"] for row in results["layers"])) == layers
    assert [(row["layer"], row["condition"]) for row in results["by_layer"]] == [
        (layer, label) for layer in layers for label in labels[1:]
    ]
    deciles = [row for row in results["deciles"] if row["condition"] == "base"]
    assert sum(row["tokens"] for row in deciles) == results["answer_tokens"]
    assert [row["nll"] for row in deciles] == sorted(row["nll"] for row in deciles)
    assert len([row for row in results["deciles"] if row["condition"] == "other adapter"]) == 10
    exact = {row["condition"]: row for row in results["exact_match"]}
    assert list(exact) == ["whole", "affine full", "gain full", "none"]
    assert exact["none"].keys() >= {"p_value", "only_whole", "only_condition"}
    assert results["rows"] == {"measured": 4, "fit": 8}
    assert results["data"]["dataset"]["skip"] == 4000
    assert len({results[name] for name in ("measured_data", "fit_data")}) == 2

    assert main(arguments) == 2
    assert f"--out: {out / 'interventions.json'} exists already" in capsys.readouterr().err
    assert main([str(adapter), *SMALL, "--layers", "1", "--level", "full", "--overwrite"]) == 0
    again = json.loads((out / "interventions.json").read_text())
    assert again["conditions"] == results["conditions"]  # the resamples are seeded


def test_a_run_and_a_chat_file(two_runs, tmp_path, capsys):
    turns = '{"role": "user", "content": "How many are %d and 1?"}, {"role": "assistant", "content": "#### 2"}'
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join('{"messages": [' + turns.replace("%d", str(i)) + "]}" for i in range(40)))
    out = tmp_path / "deep" / "out"
    options = ["--data", str(data), "--rows", "4", "--fit-rows", "16", "--level", "scalar", "--out", str(out)]
    assert main([str(two_runs / "cera"), *options]) == 0, capsys.readouterr().err
    results = json.loads((out / "interventions.json").read_text())
    assert results["data"]["dataset"]["data_files"] == [["chats.jsonl", data.stat().st_size]]
    assert results["problems"] == 4
    assert not (out / "by_layer.csv").exists()


def test_rows_that_a_configuration_names(two_runs, tmp_path, capsys):
    configuration = tmp_path / "rows.yaml"
    named = "{class_path: cera.data.ChainedArithmetic, init_args: {size: 24, steps: 2, digits: 1}}"
    configuration.write_text(f"data: {{validation: {named}}}")
    options = ["--data", str(configuration), *SMALL, "--level", "scalar", "--out", str(tmp_path / "out")]
    assert main([str(two_runs / "cera"), *options]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "interventions.json").read_text())
    assert results["data"]["dataset"]["class"].endswith("ChainedArithmetic")
    assert results["data"]["dataset"]["steps"] == 2
    configuration.write_text("model: {base: x}")
    assert main([str(two_runs / "cera"), *options, "--overwrite"]) == 2
    assert "describes no set of rows: it has no data.validation and no data.dataset" in capsys.readouterr().err


def test_rows_are_rendered_as_the_adapters_training_data_were(tiny_llama, tmp_path, capsys):
    adapter = saved(tiny_llama, tmp_path / "adapter")
    measured = []
    for name in ("base", "own"):
        assert main([str(adapter), *SMALL, "--level", "scalar", "--out", str(tmp_path / name)]) == 0
        results = json.loads((tmp_path / name / "interventions.json").read_text())
        measured.append((results["measured_data"], results["fit_data"]))
        template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
        generation = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        (adapter / "chat_template.jinja").write_text(template + generation)
    assert all(base != own for base, own in zip(*measured, strict=True))


def test_the_identity_loses_nothing(tiny_llama, tmp_path, capsys):
    adapter = saved(tiny_llama, tmp_path / "adapter", activation="identity")
    assert main([str(adapter), *SMALL, "--level", "diagonal"]) == 0, capsys.readouterr().err
    by_label = {row["condition"]: row for row in rows(adapter / "interventions" / "conditions.csv")}
    for label in ("gain diagonal", "affine diagonal"):
        assert abs(float(by_label[label]["nll_minus_whole"])) < 1e-5
        assert float(by_label[label]["kl"]) < 1e-9
    assert float(by_label["none"]["kl"]) > 1e-3
    for row in rows(adapter / "interventions" / "layers.csv"):
        assert float(row["gain"]) == pytest.approx(1, abs=1e-6)
        assert max(float(row["offset_held_out"]), float(row["curvature_held_out"])) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "holds neither a run nor an adapter"),
        (["{runs}/lora"], "peft_type LORA has no activation to intervene on"),
        (["{runs}/cera", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["{runs}/cera", "--fit-rows", "0"], "--fit-rows must be at least 1, got 0"),
        (["{runs}/cera", "--layer-rows", "0"], "--layer-rows must be at least 1, got 0"),
        (["{runs}/cera", "--layers", "9", *SMALL], "layers must be among 0, 1, 2, 3, got 9"),
        (["{runs}/cera", "--data", "{tmp}/missing.jsonl"], "no such file"),
        (["{runs}/cera", "--data", "{tmp}/two.jsonl", "--rows", "2"], "leaves nothing to train on"),
        (["{runs}/cera", "--against", "{tmp}/nothing"], "holds neither a run nor an adapter"),
        (["{runs}/cera", "--task", "{tmp}/nothing.yaml"], "nothing.yaml"),
    ],
)
def test_errors(two_runs, tmp_path, capsys, arguments, message):
    turns = '{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]}\n'
    (tmp_path / "two.jsonl").write_text(turns * 2)
    given = [argument.format(tmp=tmp_path, runs=two_runs) for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "out").glob("*.json"))
