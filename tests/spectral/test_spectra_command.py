import csv
import re
import shutil
from pathlib import Path

import pytest

from cera.runs.finished import FinishedRun
from cera.spectral import effective_rank, energy_rank
from cera.spectral.command import main
from cera.spectral.measures import MEASURES
from cera.studies.compare import comparison_row

EARLIER = Path(__file__).parent.parent / "fixtures" / "earlier"
PAPERS = ("effective_rank", "effective_rank_over_r", "auc_90")
"""The measures in the first columns."""


@pytest.fixture
def adapter_alone(two_runs, tmp_path):
    """CeRA's adapter, copied away from its run."""
    return shutil.copytree(two_runs / "cera" / "adapter", tmp_path / "my-adapter")


def tables(printed: str) -> dict[str, str]:
    """The printed tables by heading."""
    parts = re.split(r"^((?:update|latent|weight)[^\n]*; [^\n]*)$", printed, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(printed: str, group: str = "mean", centred: bool = False) -> dict[str, list[float]]:
    """Number of layers and the paper's measures by adapter, of one of the two tables."""
    (shown,) = [text for heading, text in tables(printed).items() if (", centred" in heading) == centred]
    printed_rows = re.findall(rf"^(.*?)\s+{group}\s+(\d+(?:\s+[\d.e+-]+)+)$", shown, re.MULTILINE)
    return {label: [float(value) for value in values.split()[:4]] for label, values in printed_rows}


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
    for value, name in zip(printed, PAPERS, strict=True):
        measure = MEASURES[name]
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


def test_both_centrings_are_shown_and_named(two_runs, tmp_path, capsys):
    """In the tables, the file of all layers, the comparison and the logs."""
    file, figure = tmp_path / "spectra.csv", tmp_path / "spectra.svg"
    arguments = [str(two_runs / "cera"), str(two_runs / "lora"), "--csv", str(file), "--out", str(figure)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    run = FinishedRun.read(two_runs / "cera")
    sample = run.spectra()[-1].sample
    assert list(tables(printed)) == [
        f"update, {centring}; mean over all layers; {sample.count:,} tokens of data {sample.data[:8]}"
        for centring in ("not centred", "centred")
    ]
    for centred, prefix in ((False, "spectra"), (True, "spectra_centred")):
        (_, rank, *_), lora = rows(printed, centred=centred).values()
        compared = comparison_row(run)
        expected = (compared.centred if centred else compared.measures)["effective_rank"]
        logged = run.curve(f"{prefix}/effective_rank/mean")
        assert logged[max(logged)] == pytest.approx(expected, rel=1e-5)
        assert rank == pytest.approx(expected, abs=0.006)
        assert lora != rank
    with file.open() as lines:
        by_layer = list(csv.DictReader(lines))
    assert {(row["centred"], row["tokens"], row["data"]) for row in by_layer} == {
        (centred, "all", sample.data) for centred in ("False", "True")
    }
    text = figure.read_text()
    assert all(f"<!-- Effective rank of the update, {words} -->" in text for words in ("centred", "not centred"))


def test_the_authors_protocol_measures_padded_rows(two_runs, adapter_alone, capsys):
    """A run recorded other tokens, so it is measured now; both ways give one number for one adapter."""
    assert main([str(two_runs / "cera"), str(adapter_alone), "--protocol", "authors", "--rows", "12"]) == 0
    printed = capsys.readouterr()
    ((heading, _),) = tables(printed.out).items()
    assert re.match(
        r"update, centred; mean spectrum of the last 5 layers; [\d,]+ tokens with padding of data \w{8}$", heading
    )
    assert printed.err.count("measured now") == 2
    assert "warning" not in printed.err
    first, second = rows(printed.out, centred=True).values()
    assert first == second
    main([str(two_runs / "cera"), "--protocol", "authors", "--rows", "12", "--aggregate", "mean_of_layers"])
    (other,) = rows(capsys.readouterr().out, centred=True).values()
    assert other[1] != first[1]


@pytest.mark.parametrize("protocol", ["paper", "ours"])
def test_what_is_recorded_serves_these_protocols(two_runs, capsys, protocol):
    assert main([str(two_runs / "cera"), "--protocol", protocol]) == 0
    printed = capsys.readouterr()
    assert "recorded at step 12" in printed.err
    assert [heading.split("; ")[:2] for heading in tables(printed.out)] == [
        ["update, not centred", "mean over all layers"]
    ]


def test_last_layers_only(two_runs, tmp_path, capsys):
    file = tmp_path / "spectra.csv"
    assert main([str(two_runs / "cera"), "--layers", "2", "--centre", "true", "--csv", str(file)]) == 0
    (heading,) = tables(capsys.readouterr().out)
    assert heading.startswith("update, centred; mean over the last 2 layers; ")
    with file.open() as lines:
        assert {row["layer"] for row in csv.DictReader(lines)} == {"2", "3"}


def test_adapters_that_were_measured_on_other_rows_are_warned_of(two_runs, adapter_alone, tmp_path, capsys):
    figure = tmp_path / "spectra.svg"
    main([str(two_runs / "lora"), str(adapter_alone), "--rows", "8", "--out", str(figure)])
    printed = capsys.readouterr()
    assert re.search(
        r"warning: Not comparable: LoRA r=8 was measured on [\d,]+ tokens of data \w{8}, and CeRA r=8 on [\d,]+ tokens",
        printed.err,
    )
    assert all(heading.endswith("not all at the same tokens") for heading in tables(printed.out))
    assert "<!-- Not comparable: LoRA r=8 was measured on " in figure.read_text()
    main([str(two_runs / "lora"), str(two_runs / "cera")])
    assert "Not comparable" not in capsys.readouterr().err


def test_a_run_of_an_earlier_version_has_no_centred_table(capsys):
    assert main([str(EARLIER / "cera_whole")]) == 0
    (heading,) = tables(capsys.readouterr().out)
    assert heading == ("update, not centred; mean over all layers; an unrecorded number of tokens of unrecorded data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{adapter}", "--layers", "0"], "layers must be at least 1, got 0"),
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
