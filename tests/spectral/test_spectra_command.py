import re
import shutil

import pytest

from cera.runs.finished import FinishedRun
from cera.spectral import effective_rank, energy_rank
from cera.spectral.command import main
from cera.spectral.measures import MEASURES
from cera.studies.compare import comparison_row

NUMBER = r"\s+(\d+\.\d+)"


@pytest.fixture
def adapter_alone(two_runs, tmp_path):
    """CeRA's adapter, copied away from its run."""
    return shutil.copytree(two_runs / "cera" / "adapter", tmp_path / "my-adapter")


def rows(printed: str, group: str = "mean") -> dict[str, list[float]]:
    printed_rows = re.findall(rf"^(.*?)\s+{group}\s+(\d+){NUMBER}{NUMBER}{NUMBER}$", printed, re.MULTILINE)
    return {label: [float(value) for value in values] for label, *values in printed_rows}


def test_recorded_spectra_of_two_runs_side_by_side(two_runs, tmp_path, capsys):
    figure = tmp_path / "deep" / "spectra.png"
    assert main([str(two_runs / "cera"), str(two_runs / "lora"), "--out", str(figure)]) == 0
    printed_rows = rows(capsys.readouterr().out)
    assert list(printed_rows) == ["CeRA r=8", "LoRA r=8"]
    for name, values in zip(("cera", "lora"), printed_rows.values(), strict=True):
        spectra = list(FinishedRun.read(two_runs / name).spectra()[-1].values["update"].values())
        rank = sum(map(effective_rank, spectra)) / len(spectra)
        ninety = sum(map(energy_rank, spectra)) / len(spectra)
        assert values == pytest.approx([len(spectra), rank, rank / 8, ninety], abs=0.006)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_adapter_and_rank_are_told_apart_by_their_settings(two_runs, tmp_path, capsys):
    other = shutil.copytree(two_runs / "cera", tmp_path / "other")
    config = (other / "config.yaml").read_text()
    changed = config.replace("scaling: 1.0", "scaling: 4.0").replace("learning_rate: 0.01", "learning_rate: 0.03")
    (other / "config.yaml").write_text(changed)
    main([str(two_runs / "cera"), str(other), "--out", str(tmp_path / "spectra.png")])
    labels = list(rows(capsys.readouterr().out))
    assert labels == [
        "CeRA r=8, scaling=1.0, learning_rate=0.01", "CeRA r=8, scaling=4.0, learning_rate=0.03"
    ]  # fmt: skip


def test_all_outputs_have_the_same_means(two_runs, tmp_path, capsys):
    """Logs, the table of this command and that of the comparison."""
    main([str(two_runs / "cera"), "--out", str(tmp_path / "spectra.png")])
    _, *printed = rows(capsys.readouterr().out)["CeRA r=8"]
    run = FinishedRun.read(two_runs / "cera")
    compared = comparison_row(run).measures
    for value, (name, measure) in zip(printed, MEASURES.items(), strict=True):
        logged = run.curve(f"spectra/{name}/mean")
        assert logged[max(logged)] == pytest.approx(compared[name], rel=1e-5)
        assert format(compared[name], measure.format) == format(value, measure.format)


def test_an_adapter_without_a_run_is_measured(two_runs, adapter_alone, tmp_path, capsys):
    figure = str(tmp_path / "s.png")
    assert main([str(adapter_alone), "--rows", "8", "--quantity", "latent", "--out", figure]) == 0
    captured = capsys.readouterr()
    assert "measured now" in captured.err
    assert 1 < rows(captured.out)["CeRA r=8"][1] <= 8


def test_all_are_measured_on_the_same_data_if_asked(two_runs, adapter_alone, tmp_path, capsys):
    data = tmp_path / "chats.jsonl"
    turns = '{"role": "user", "content": "How many are %d and 1?"}, {"role": "assistant", "content": "#### 2"}'
    data.write_text("\n".join('{"messages": [' + turns.replace("%d", str(i)) + "]}" for i in range(40)))
    folders = [str(two_runs / "cera"), str(adapter_alone)]
    assert main([*folders, "--data", str(data), "--rows", "20", "--out", str(tmp_path / "s.png")]) == 0
    printed_rows = rows(capsys.readouterr().out)
    assert len(printed_rows) == 2
    assert len({tuple(values) for values in printed_rows.values()}) == 1  # the same adapter, by two ways


def test_weights_of_a_linear_adapter(two_runs, tmp_path, capsys):
    arguments = [str(two_runs / "lora" / "adapter"), "--quantity", "weight", "--out", str(tmp_path / "s.png")]
    assert main(arguments) == 0
    assert 1 < rows(capsys.readouterr().out)["LoRA r=8"][1] <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "holds neither a run nor an adapter"),
        (["{adapter}", "--quantity", "weight"], "has none"),
        (["{adapter}", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["{adapter}", "--base", "{tmp}/nowhere"], "nowhere"),
        (["{adapter}", "--data", "{tmp}/missing.jsonl"], "missing.jsonl"),
    ],
)
def test_errors(adapter_alone, tmp_path, capsys, arguments, message):
    given = [a.format(tmp=tmp_path, adapter=adapter_alone) for a in arguments]
    assert main([*given, "--out", str(tmp_path / "s.png")]) == 2
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed or message in printed.splitlines()[-1]
    assert not (tmp_path / "s.png").exists()
