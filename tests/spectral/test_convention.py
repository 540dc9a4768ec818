"""The convention decides the number: whose effective rank, of which layers, aggregated how, at which tokens."""

import numpy as np
import pytest
import torch
from fitting import fit
from torch.nn import functional as F

import cera
from cera.callbacks import SpectralTracker
from cera.runs.finished import curve
from cera.spectral.aggregate import OURS, last_layers, mean_spectrum, metric_prefix, metrics, summarize
from cera.spectral.convention import PROTOCOLS, Convention, describe_matrix, matrix_name
from cera.spectral.files import MATRICES, Spectra
from cera.spectral.recorder import measure
from cera.spectral.sample import pad_to_longest

PADDING = 2


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """CeRA after some steps on the tiny Llama of four layers, and its held-out rows, one document per row."""
    adapter = cera.CeraConfig(r=8, dropout=0.1, target_modules=["q_proj", "v_proj"])
    module, data, _ = fit(tiny_llama, tmp_path_factory.mktemp("trained"), [], adapter=adapter, max_steps=6)
    data.validation_stream.packing = False
    return module.model.eval(), pad_to_longest(list(data.val_dataloader()), PADDING)


def authors_reference(model, batches, last: int, centre: bool = True) -> tuple[float, int]:
    """Their definition in NumPy, from the branches' outputs in fp32: padding included, no attention mask."""
    rows: dict[str, list[np.ndarray]] = {}

    def keep(name):
        def hook(layer, args, output):
            up, down = (part["default"].weight for part in (layer.cera_up, layer.cera_down))
            update = layer.scaling["default"] * F.linear(F.silu(F.linear(args[0], up)), down)
            rows.setdefault(name, []).append(update.flatten(0, -2).numpy())

        return hook

    layers = {name: module for name, module in model.named_modules() if name.endswith(("q_proj", "v_proj"))}
    numbers = sorted({int(name.split(".")[4]) for name in layers})[-last:]
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in layers.items()
        if int(name.split(".")[4]) in numbers
    ]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"])
    for handle in handles:
        handle.remove()
    spectra = []
    for parts in rows.values():
        h = np.concatenate(parts).astype(np.float64)
        sigma = np.linalg.svd(h - h.mean(axis=0) if centre else h, compute_uv=False)
        spectra.append(sigma / sigma.sum())
    assert len(spectra) == 2 * len(numbers)
    shortest = min(map(len, spectra))
    mean = np.mean([sigma[:shortest] for sigma in spectra], axis=0)
    p = mean / mean.sum()
    energy = np.cumsum(mean**2) / (mean**2).sum()
    return float(np.exp(-(p * np.log(p + 1e-10)).sum())), int(np.argmax(energy >= 0.9)) + 1


@pytest.mark.parametrize("last", [2, 5])
def test_the_authors_protocol_is_their_definition_in_numpy(trained, last):
    """On the tiny model's four layers, the last five are all; the last two are as theirs in a larger one."""
    model, batches = trained
    convention = Convention(centre=True, layers=last, aggregate="spectrum_of_mean", tokens="with_padding")
    assert last == 2 or convention.__dict__ == PROTOCOLS["authors"].__dict__ | {"rows": convention.rows}
    spectra = measure(model, batches, ["update"], convention.tokens)
    ours = summarize(spectra.values["update_centred"], spectra.ranks, convention).means
    rank, ninety = authors_reference(model, batches, last)
    assert ours["effective_rank"]["mean"] == pytest.approx(rank, abs=1e-4)
    assert ours["auc_90"]["mean"] == ninety
    assert spectra.sample.count == sum(batch["input_ids"].numel() for batch in batches)

    # every part of the convention makes a difference
    without_centring, _ = authors_reference(model, batches, last, centre=False)
    assert abs(without_centring - rank) > 0.1
    other_layers, _ = authors_reference(model, batches, 1)
    assert abs(other_layers - rank) > 1e-3
    for tokens in ("all", "answer"):
        others = measure(model, batches, ["update"], tokens)
        value = summarize(others.values["update_centred"], others.ranks, convention).means["effective_rank"]["mean"]
        assert abs(value - rank) > 1e-3


def test_answer_tokens_are_those_with_a_label(trained):
    model, batches = trained
    counts = {tokens: measure(model, batches, ["update"], tokens).sample for tokens in ("answer", "all")}
    assert counts["answer"].count == sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert counts["all"].count == sum(int(batch["tokens"].sum()) for batch in batches)
    assert counts["answer"].count < counts["all"].count
    assert counts["answer"].data == counts["all"].data is not None
    assert (counts["answer"].tokens, counts["all"].tokens) == ("answer", "all")


def spectra_of(numbers, width=4) -> dict[str, torch.Tensor]:
    return {
        f"model.layers.{n}.self_attn.{module}": torch.linspace(1 + n, 0.1, width + n % 2, dtype=torch.float64)
        for n in numbers
        for module in ("q_proj", "v_proj")
    }


def test_last_layers_are_those_with_the_highest_numbers():
    layers = spectra_of([10, 2, 7, 30])
    assert set(last_layers(layers, 2)) == set(spectra_of([10, 30]))
    assert last_layers(layers, None) == layers
    assert set(last_layers(layers, 9)) == set(layers)


def test_the_mean_spectrum_is_of_shares_up_to_the_shortest():
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([10.0, 6.0, 4.0])
    assert mean_spectrum([a, b, torch.zeros(2)]).tolist() == pytest.approx([(0.75 + 0.5) / 2, (0.25 + 0.3) / 2])
    assert len(mean_spectrum([torch.zeros(3)])) == 0
    layers = {"model.layers.0.q_proj": a, "model.layers.1.q_proj": b}
    summary = summarize(layers, {"model.layers.0.q_proj": 2}, Convention(aggregate="spectrum_of_mean"))
    assert summary.means["auc_90"] == {"mean": 2, "q_proj": 2}
    assert summary.means["effective_rank_over_r"] == {}  # one layer has no rank
    zero = summarize({"model.layers.0.q_proj": torch.zeros(2)}, {}, Convention(aggregate="spectrum_of_mean"))
    assert zero.means["effective_rank"]["mean"] == 0


def test_names():
    assert [metric_prefix(matrix) for matrix in MATRICES] == [
        "spectra", "spectra_latent", "spectra_weight", "spectra_centred", "spectra_latent_centred"
    ]  # fmt: skip
    assert {matrix_name(q, centre) for q in ("update", "latent", "weight") for centre in (True, False)} == set(MATRICES)
    assert describe_matrix("update_centred") == "update, centred"
    assert describe_matrix("latent") == "latent, not centred"
    assert describe_matrix("weight") == "weight"
    assert PROTOCOLS["authors"].aggregation == "mean spectrum of the last 5 layers"
    assert OURS.aggregation == "mean over all layers"


def test_errors():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        Convention(layers=0)


def test_logged_names_say_the_convention_and_do_not_flood():
    layers = spectra_of(range(3))
    ranks = dict.fromkeys(layers, 4)
    spectra = Spectra(1, {"update": layers, "update_centred": {n: s / 2 for n, s in layers.items()}}, ranks)
    logged = metrics(spectra, "authors")
    assert logged["spectra/effective_rank/mean"] == summarize(layers, ranks).means["effective_rank"]["mean"]
    by_layer = {name for name in logged if "_by_layer" in name}
    assert len(by_layer) == 3 * 6  # the paper's measures, of the update as it is
    assert not any("centred" in name for name in by_layer)
    for prefix in ("spectra", "spectra_centred"):
        assert f"{prefix}/stable_rank/mean" in logged
        assert f"{prefix}/stable_rank/q_proj" not in logged
        assert f"{prefix}/effective_rank/q_proj" in logged
    expected = summarize(spectra.values["update_centred"], ranks, PROTOCOLS["authors"]).means["effective_rank"]["mean"]
    assert logged["spectra_authors/effective_rank/mean"] == expected
    assert not any(name.startswith("spectra_authors") for name in metrics(spectra))
    assert len(logged) < 60


def test_the_tracker_logs_both_centrings_and_the_authors_numbers(tiny_llama, tmp_path):
    fit(tiny_llama, tmp_path, [SpectralTracker(protocol="authors")])
    spectra = Spectra.read(tmp_path / "spectra" / "step=4.safetensors")
    assert set(spectra.values) == {"update", "update_centred", "latent", "latent_centred"}
    assert spectra.sample.tokens == "with_padding"
    assert spectra.sample.data is not None
    for name, convention, matrix in (
        ("spectra", OURS, "update"),
        ("spectra_centred", OURS, "update_centred"),
        ("spectra_authors", PROTOCOLS["authors"], "update_centred"),
    ):
        expected = summarize(spectra.values[matrix], spectra.ranks, convention).means["effective_rank"]["mean"]
        assert curve(tmp_path / "metrics.csv", f"{name}/effective_rank/mean")[4] == pytest.approx(expected)


def test_the_same_rows_have_the_same_identity_at_each_validation(tiny_llama, tmp_path):
    tracker = SpectralTracker()
    fit(tiny_llama, tmp_path, [tracker])
    first, second = (spectra.sample for spectra in tracker.history.values())
    assert first == second
    other = SpectralTracker(batches=1)
    fit(tiny_llama, tmp_path / "other", [other])
    assert other.history[4].sample.data != first.data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "theirs"}, "SpectralTracker.protocol must be one of paper, authors, ours, got theirs"),
        ({"tokens": "prompt"}, "SpectralTracker.tokens must be one of answer, all, with_padding, got prompt"),
        (
            {"protocol": "authors", "tokens": "all"},
            "SpectralTracker.tokens must be with_padding with protocol authors, got all",
        ),
    ],
)
def test_settings_that_contradict_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectralTracker(**arguments)
