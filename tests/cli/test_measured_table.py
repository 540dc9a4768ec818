"""What `validate` prints: metrics, and spectra by group of layers; not a number for each layer."""

from cera.cli.measured_table import measured_table

PERPLEXITY = {"val/perplexity": 3.25, "val/loss": 1.1787}
SPECTRA = {
    "spectra/effective_rank/mean": 6.5,
    "spectra/effective_rank/q_proj": 7.25,
    "spectra/auc_90/mean": 2.0,
    "spectra_latent/effective_rank/mean": 9.75,
    "spectra_latent_centred/effective_rank/mean": 10.5,
    "spectra_authors/effective_rank/mean": 8.25,
    "spectra/stable_rank/mean": 1.5,
    "spectra/cost": 0.01,
}


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines() if line and not line.startswith("-")]


def test_metrics_alone() -> None:
    assert rows(measured_table(PERPLEXITY)) == [
        ["metric", "value"],
        ["val/perplexity", "3.2500"],
        ["val/loss", "1.1787"],
    ]


def test_spectra_have_a_row_for_each_group_and_none_for_a_layer() -> None:
    by_layer = {f"spectra_by_layer/effective_rank/q_proj/{n:02d}": 1.0 for n in range(30)}
    by_layer |= {f"gamma_by_layer/q_proj/{n}": 1.0 for n in range(30)}
    printed = measured_table({**PERPLEXITY, **SPECTRA, **by_layer})
    assert printed == measured_table({**PERPLEXITY, **SPECTRA})
    table = rows(printed)[3:]
    assert table[0] == ["mean", "over", "layers", "ER", "AUC-90"]
    assert [row[:-2] if row[-2].replace(".", "").isdigit() else row[:-1] for row in table[1:]] == [
        ["update,", "not", "centred", "all"],
        ["update,", "not", "centred", "q_proj"],
        ["latent,", "not", "centred", "all"],
        ["latent,", "centred", "all"],
        ["protocol", "authors", "all"],
    ]
    assert [row[-1] for row in table[1:]] == ["2.00", "7.25", "9.75", "10.50", "8.25"]
