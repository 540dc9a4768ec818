"""What a study measures of a run by commands: linearization, interventions and accuracy, on runs of the tiny Llama."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from peft import get_peft_model
from study_files import study
from transformers import AutoModelForCausalLM

import cera
from cera.cli.main import main
from cera.evaluation.records import read
from cera.evaluation.tasks import Problem, Score, Task
from cera.runs.finished import FinishedRun
from cera.studies.activation_measures import InterventionsMeasure, LearnedMixMeasure, LinearizationMeasure
from cera.studies.measures import GeneralText, Measure, TaskAccuracy
from cera.studies.processes import next_command


@pytest.fixture
def runs(two_runs, tmp_path) -> Path:
    """Copies of the runs ``cera`` and ``lora``, for a test to write to."""
    return shutil.copytree(two_runs, tmp_path / "runs")


def measured(measure: Measure, run_dir: Path) -> dict[str, float]:
    """Run the command of a measure in this process, and return the values."""
    _, _, _, *arguments = measure.command(run_dir)
    assert main(arguments) == 0
    return measure.values(FinishedRun.read(run_dir))


def test_linearization(runs) -> None:
    measure = LinearizationMeasure(rank=4, rows=40)
    assert measure.values(FinishedRun.read(runs / "cera")) == {}
    (runs / "cera" / "linearized").mkdir()
    (runs / "cera" / "linearized" / "adapter_config.json").write_text("{")  # of a command that was killed
    values = measured(measure, runs / "cera")
    assert values.keys() == {
        "linearization_kept_energy",
        "linearization_perplexity",
        "linearization_adapter_perplexity",
    }
    assert 0 < values["linearization_kept_energy"] <= 1
    report = json.loads((runs / "cera" / "linearized" / "linearization.json").read_text())
    assert {layer["rank"] for layer in report["layers"]} == {4}
    assert values["linearization_perplexity"] == report["perplexity"]["LoRA"]
    assert values["linearization_adapter_perplexity"] == report["perplexity"]["CeRA"]
    (runs / "cera" / "linearized" / "linearization.json").write_text("{}")
    with pytest.raises(ValueError, match=r"linearization\.json has no perplexity"):
        measure.values(FinishedRun.read(runs / "cera"))


def test_the_gammas_of_a_learned_mix(runs, tiny_llama) -> None:
    measure = LearnedMixMeasure()
    assert measure.values(FinishedRun.read(runs / "cera")) == {}, "SiLU has no gamma"
    config = cera.CeraConfig(r=4, activation="learned_mix", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    gammas = [parameter for name, parameter in model.named_parameters() if name.endswith("gamma")]
    for number, gamma in enumerate(gammas):
        gamma.data.fill_(number)
    model.save_pretrained(runs / "cera" / "adapter")
    values = measure.values(FinishedRun.read(runs / "cera"))
    last = len(gammas) - 1
    assert last > 0
    assert values == {"gamma": last / 2, "gamma_lowest": 0, "gamma_highest": last}


def test_interventions(runs) -> None:
    values = measured(InterventionsMeasure(rows=4, fit_rows=8, level="scalar"), runs / "cera")
    parts = ("none", "gain", "offset", "affine", "curvature")
    assert values.keys() == {f"interventions_{part}_loss_difference" for part in parts}
    assert values["interventions_none_loss_difference"] > 10 * abs(values["interventions_affine_loss_difference"])
    content = json.loads((runs / "cera" / "interventions" / "interventions.json").read_text())
    assert content["rows"] == {"measured": 4, "fit": 8}
    assert content["conditions"][1]["nll_minus_whole"] == values["interventions_none_loss_difference"]
    detailed = InterventionsMeasure(rows=4, fit_rows=8, level="scalar", detailed=True)
    assert detailed.values(FinishedRun.read(runs / "cera")) == {}, "measured again, by layer"
    more = measured(detailed, runs / "cera")
    assert {name: more[name] for name in values} == pytest.approx(values)
    assert [f"interventions_affine_decile_{decile}_loss_difference" in more for decile in (1, 10)] == [True, True]
    content = json.loads((runs / "cera" / "interventions" / "interventions.json").read_text())
    by_layer = {row["layer"]: row["nll_minus_whole"] for row in content["by_layer"] if "affine" in row["condition"]}
    assert len(by_layer) == len({row["layer"] for row in content["layers"]})
    assert by_layer == {layer: more[f"interventions_affine_{layer}_loss_difference"] for layer in by_layer}
    assert len(more) == len(values) + 10 + len(by_layer)
    (runs / "cera" / "interventions" / "interventions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"interventions\.json"):
        InterventionsMeasure().values(FinishedRun.read(runs / "cera"))


@pytest.mark.parametrize("measure", [LinearizationMeasure(), InterventionsMeasure()])
def test_an_adapter_without_an_activation_has_no_such_values(two_runs, measure) -> None:
    assert measure.command(two_runs / "lora") is None
    assert measure.values(FinishedRun.read(two_runs / "lora")) == {}
    assert measure.command(two_runs / "cera") is not None


def test_a_run_that_has_nothing_to_linearize_has_ended_with_its_training(two_runs, tmp_path) -> None:
    axes = {"adapter": {"cera": "cera.yaml", "lora": "lora.yaml"}}
    loaded = study(tmp_path, axes=axes, measure=["perplexity", "linearization", "interventions"])
    shutil.copytree(two_runs, loaded.folder)
    assert [state.state for state in loaded.states()] == ["stopped", "finished"]
    cera, lora = loaded.definition.runs
    assert next_command(loaded.folder, cera, loaded.definition)[3:5] == ["linearize", str(loaded.folder / "cera")]
    assert next_command(loaded.folder, lora, loaded.definition) is None
    assert loaded.summary().runs[1].values.keys() == {"perplexity"}


def test_an_adapter_at_modules_has_interventions_and_no_linearization(runs) -> None:
    file = runs / "cera" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"granularity": "module"}))
    assert LinearizationMeasure().command(runs / "cera") is None
    assert InterventionsMeasure().command(runs / "cera") is not None


def test_general_text_is_what_the_callback_logged_last(runs) -> None:
    assert GeneralText().values(FinishedRun.read(runs / "lora")) == {}
    (runs / "lora" / "metrics.csv").write_text(
        "epoch,step,forgetting/perplexity,forgetting/loss_increase,forgetting/kl\n,0,9,0,0\n0,3,9.5,0.1,0.2\n"
    )
    expected = {"general_text_perplexity": 9.5, "general_text_loss_increase": 0.1, "general_text_kl": 0.2}
    assert GeneralText().values(FinishedRun.read(runs / "lora")) == expected


@dataclass
class Digits(Task):
    """An answer is right if the number of its letters is a multiple of two, or of three."""

    def all_problems(self) -> list[Problem]:
        return [Problem(f"digits/{i}", f"{i} + 1?", "ab" if i % 2 else "abc") for i in range(6)]

    def score(self, text: str, problem: Problem) -> Score:
        return Score(correct=sum(map(str.isalpha, text)) % len(problem.gold) == 0)

    def summarize(self, records) -> dict[str, dict[str, float]]:
        return {"asked": {"value": float(len(records)), "low": 0.0, "high": 0.0}}


def test_accuracy_of_several_samples_from_the_command_to_the_summary(runs, tmp_path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text(
        f"evaluation:\n  task: {__name__}.Digits\n  pass_at: [1, 2]\n"
        "  sampling: {samples: 3, temperature: 1.0, max_new_tokens: 4}\n"
    )
    measure = TaskAccuracy(str(file), "digits")
    values = measured(measure, runs / "cera")
    assert values.keys() == {"digits_pass@1", "digits_pass@2", "digits_asked", "digits_cut_off", "digits_loops"}
    assert values["digits_cut_off"] == 1  # so that there is no accuracy of complete answers
    assert 0 < values["digits_pass@1"] < values["digits_pass@2"] < 1  # the samples are seeded
    run = FinishedRun.read(runs / "cera")
    scores = measure.problems(run)["digits"]
    assert len(scores.counts) == values["digits_asked"] == 6
    for metric in ("pass@1", "pass@2"):
        assert np.mean(scores.metric(metric)) == pytest.approx(values[f"digits_{metric}"], abs=1e-12)
    counts = [sum(record["correct"]) for record in read(run.path / "eval" / "digits" / "records.jsonl")]
    assert list(scores.counts) == list(map(str, counts))

    given = {"config": str(file), "name": "digits"}
    loaded = study(tmp_path / "study", axes={"adapter": {"cera": "cera.yaml"}}, measure=[{"evaluation": given}])
    shutil.copytree(runs / "cera", loaded.folder / "cera")
    (summarized,) = loaded.summary().runs
    assert summarized.state == "finished"
    assert summarized.values["digits_pass@2"] == pytest.approx(values["digits_pass@2"])
    assert summarized.problems == {"digits": scores}
    (loaded.folder / "cera" / "eval" / "digits" / "records.jsonl").unlink()
    assert loaded.summary().runs[0].problems == {}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"linearization": {"rank": 0}}, "measure.linearization.rank must be an integer of at least 1, got 0"),
        ({"linearization": {"data": "gone.jsonl"}}, "measure.linearization.data: there is no file"),
        ({"interventions": {"rows": "many"}}, "measure.interventions.rows must be an integer .* got 'many'"),
        ({"interventions": {"detailed": 1}}, "measure.interventions.detailed must be true or false, got 1"),
        ({"interventions": {"level": "cubic"}}, "level must be one of scalar, diagonal, full, got 'cubic'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(tmp_path, measure, message) -> None:
    with pytest.raises(ValueError, match=message):
        study(tmp_path, measure=[measure])
