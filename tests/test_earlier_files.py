"""Files of the code before it was divided into rooms load with today's code (tests/fixtures/earlier)."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import losses, run
from conftest import REPOSITORY
from safetensors.torch import load_file

from cera.evaluation import command
from cera.runs.finished import FinishedRun, find_runs, labels
from cera.runs.saved_adapter import SavedAdapter

EARLIER = Path(__file__).parent / "fixtures" / "earlier"
LABELS = {
    "cera_whole": "CeRA r=2",
    "cera_stopped": "CeRA r=2",
    "houlsby_whole": "Houlsby r=2",
    "houlsby_stopped": "Houlsby r=2",
    "parallel": "Parallel r=2",
    "cera_module": "CeRA r=2",
    "cera_dora": "CeRA-DoRA r=2",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The logits (12, 64) of each run's adapter and of its base, computed by the earlier code, and the token ids."""
    return load_file(EARLIER / "logits.safetensors")


def logits(run_dir: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first 64 logits of each token (length, 64) in fp32, of a run's adapter and of its base."""
    model = SavedAdapter.find(run_dir).load(torch.float32, "cpu")
    with torch.no_grad():
        adapted = model(input_ids=ids).logits[0, :, :64]
        with model.disable_adapter():
            return adapted, model(input_ids=ids).logits[0, :, :64]


@pytest.mark.parametrize("name", LABELS)
def test_adapters_compute_what_they_computed(name, expected):
    adapted, base = logits(EARLIER / name, expected["ids"])
    torch.testing.assert_close(adapted, expected[name], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(base, expected[f"{name}/base"], rtol=1e-5, atol=1e-4)
    others = [key for key in expected if key not in (name, "ids") and "base" not in key]
    for other in [*others, f"{name}/base"]:  # the tolerance tells adapters apart, also two steps of one adapter
        assert (adapted - expected[other]).abs().max() > 0.01, other


@pytest.mark.parametrize("name", LABELS)
def test_run_directories_are_read(name):
    finished = FinishedRun.read(EARLIER / name)
    assert (finished.label, finished.learning_rate, finished.rank) == (LABELS[name], 0.01, 2)
    assert finished.divergence is None
    assert finished.finished == name.endswith("whole")
    steps = {"whole": [2, 4, 6], "stopped": [2]}.get(name.partition("_")[2], [])
    assert list(finished.curve("val/perplexity")) == ([0, *steps] if steps else [])
    assert list(finished.curve("train/loss")) == {6: [1, 2, 3, 4, 5, 6], 2: [1, 2, 3], 0: []}[max(steps, default=0)]
    spectra = finished.spectra()
    assert [s.step for s in spectra] == steps
    for s in spectra:
        assert s.values["update"].keys() == s.values["latent"].keys() == s.ranks.keys()
        assert all(sigma.dtype == torch.float64 and sigma[0] > 0 for sigma in s.values["update"].values())


def test_runs_of_one_study_are_told_apart():
    runs = find_runs(EARLIER)
    assert sorted(r.name for r in runs) == sorted(LABELS)
    assert len({r.identity.study for r in runs}) == 1
    named = labels(runs)
    by_name = {r.name: named[r.identity.adapter] for r in runs}
    assert by_name["cera_whole"] == by_name["cera_stopped"]
    assert len(set(by_name.values())) == len(LABELS) - 2


@pytest.mark.parametrize("adapter", ["cera", "houlsby"])
def test_stopped_runs_resume_with_the_losses_of_the_uninterrupted_run(adapter, expected, tmp_path):
    name = f"{adapter}_stopped"
    shutil.copytree(EARLIER / name, tmp_path / name)
    config = str(EARLIER / name / "config.yaml")
    run([sys.executable, "train.py", "fit", "--config", config, "--ckpt_path=last", f"--runs={tmp_path}"], timeout=900)
    whole, resumed = EARLIER / f"{adapter}_whole", tmp_path / name
    for column in ("train/loss", "train/learning_rate", "val/perplexity", "spectra/effective_rank/mean"):
        theirs, ours = losses(whole, column), losses(resumed, column)
        assert ours.keys() == theirs.keys(), column
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5), column
    adapted, _ = logits(resumed, expected["ids"])
    torch.testing.assert_close(adapted, expected[f"{adapter}_whole"], rtol=1e-4, atol=1e-3)
    assert (adapted - expected[name]).abs().max() > 0.01  # it went on from the stopped run


def test_an_evaluation_is_resumed_with_nothing_left_to_do(tmp_path, monkeypatch):
    shutil.copytree(EARLIER / "cera_whole", tmp_path / "run")
    monkeypatch.setattr(command, "_load_model", None)  # no problem is left, so no model is loaded
    options = ["--dtype=float32", "--evaluation.task.limit=3", "--evaluation.sampling.max_new_tokens=8"]
    config = str(REPOSITORY / "configs" / "eval_smol.yaml")
    assert command.main([f"--adapter={tmp_path / 'run'}", "--config", config, *options]) == 0
    before, after = (folder / "eval" / "smol" for folder in (EARLIER / "cera_whole", tmp_path / "run"))
    since = {"settings.json": {}, "eval.json": {"loops": 0.0}}  # what an evaluation counts since then
    for file, added in since.items():
        assert json.loads((after / file).read_text()) == json.loads((before / file).read_text()) | added
    assert (after / "records.jsonl").read_text() == (before / "records.jsonl").read_text()


def test_earlier_runs_belong_to_one_study_with_those_of_today(tmp_path):
    shutil.copytree(EARLIER / "cera_whole", tmp_path / "earlier")
    shutil.copytree(EARLIER / "cera_whole", tmp_path / "today")
    file = tmp_path / "today" / "config.yaml"
    assert "cera.data.GSMSymbolic" in file.read_text()
    file.write_text(file.read_text().replace("cera.data.GSMSymbolic", "cera.data.ReasoningGymWordProblems"))
    earlier, today = find_runs(tmp_path)
    assert earlier.identity == today.identity
    added = {"template": None, "loss_on": "answer", "loss_on_end": True, "with_replacement": False}
    config = yaml.safe_load(file.read_text())
    config["data"] |= added
    config["data"]["dataset"]["init_args"] |= {"rows": None, "turns": "all"}
    config["model"] |= {"schedule": "cosine", "loss_mean": "step"}
    file.write_text(yaml.safe_dump(config))
    assert earlier.identity == FinishedRun.read(tmp_path / "today").identity
    file.write_text(yaml.safe_dump({**config, "model": {**config["model"], "schedule": "constant"}}))
    assert earlier.identity != FinishedRun.read(tmp_path / "today").identity
    file.write_text(yaml.safe_dump(config).replace("size: 40", "size: 41"))
    assert earlier.identity != FinishedRun.read(tmp_path / "today").identity
