import csv
import re

import numpy as np
import pytest
import torch
from fitting import fit
from lightning import Callback
from peft import LoHaConfig, LoraConfig

import cera
from cera.callbacks import SpectralTracker
from cera.runs.finished import curve
from cera.spectral import effective_rank, energy_rank
from cera.spectral.files import Spectra
from cera.spectral.hooks import find_branches

ADAPTERS = {
    "cera": cera.CeraConfig(r=8, dropout=0.1, scaling=0.5),
    "lora": LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1),
    "dora": LoraConfig(r=8, use_dora=True),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
}


def curves(folder, prefix):
    """Column -> {step: value} of metrics.csv, for the columns that begin with ``prefix``."""
    with (folder / "metrics.csv").open() as file:
        names = [name for name in csv.DictReader(file).fieldnames if name.startswith(prefix)]
    return {name: curve(folder / "metrics.csv", name) for name in names}


@pytest.mark.parametrize("name", ADAPTERS)
def test_tracked_spectra_are_those_of_the_layers_outputs_minus_the_bases(tiny_llama, tmp_path, name):
    made, data, trainer = fit(tiny_llama, tmp_path, [SpectralTracker(batches=2)], adapter=ADAPTERS[name])
    tracked = Spectra.read(tmp_path / "spectra" / "step=4.safetensors")
    spectra = tracked.values["update"]
    assert ("latent" in tracked.values) == (name in ("cera", "lora"))
    assert sorted(p.name for p in (tmp_path / "spectra").iterdir()) == ["step=2.safetensors", "step=4.safetensors"]
    assert len(spectra) == len(find_branches(made.model)) == 8

    layer_name = "model.layers.1.self_attn.q_proj"
    layer = made.model.get_submodule(f"base_model.model.{layer_name}")
    seen = {}
    layer.base_layer.register_forward_hook(lambda _, args, output: seen.update(base=output.clone()))
    layer.register_forward_hook(lambda _, args, output: seen.update(all=output))
    rows = []
    made.model.eval()
    for batch, _ in zip(data.val_dataloader(), range(2), strict=False):
        with torch.no_grad():
            made.model(batch["input_ids"], position_ids=batch["position_ids"])
        rows.append((seen["all"] - seen["base"])[batch["tokens"]].double())
    expected = np.linalg.svd(torch.cat(rows).numpy(), compute_uv=False)
    measured = spectra[layer_name].numpy()
    np.testing.assert_allclose(measured, expected[: len(measured)], rtol=1e-3, atol=1e-4 * expected[0])
    metrics = trainer.callback_metrics
    logged = metrics["spectra_by_layer/effective_rank/q_proj/01"]
    assert logged == pytest.approx(effective_rank(spectra[layer_name]))
    queries = [effective_rank(spectra[f"model.layers.{i}.self_attn.q_proj"]) for i in range(4)]
    assert metrics["spectra/effective_rank/q_proj"] == pytest.approx(np.mean(queries))
    everywhere = np.mean([effective_rank(s) for s in spectra.values()])
    assert metrics["spectra/effective_rank_over_r/mean"] == pytest.approx(everywhere / ADAPTERS[name].r)
    assert metrics["spectra/auc_90/mean"] == pytest.approx(np.mean([energy_rank(s) for s in spectra.values()]))


def test_tracking_changes_no_number_of_the_training(tiny_llama, tmp_path):
    with_tracker, without = (fit(tiny_llama, tmp_path, callbacks)[0] for callbacks in ([SpectralTracker()], []))
    for name, parameter in without.trainable().items():
        assert torch.equal(parameter, with_tracker.trainable()[name])


def test_no_hook_is_left_behind(tiny_llama, tmp_path):
    made, _, _ = fit(tiny_llama, tmp_path, [SpectralTracker()], adapter=ADAPTERS["lora"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.modules())


def recorded_rows(tracker):
    """The number of rows seen of each layer since the last measurement; empty while nothing is measured."""
    return {a.rows for a in tracker._recorder.accumulators.values()} if tracker._recorder else set()


def test_every_n_training_steps(tiny_llama, tmp_path):
    """On the steps' own micro-batches, with gradient checkpointing, which runs the forward twice."""
    tracker = SpectralTracker(quantities=["update", "latent", "weight"], every_n_steps=3)
    options = {"max_steps": 7, "accumulate_grad_batches": 2, "log_every_n_steps": 50, "gradient_checkpointing": True}
    seen = []
    tracker.on_before_optimizer_step = lambda *args: seen.append(recorded_rows(tracker))
    fit(tiny_llama, tmp_path, [tracker], adapter=ADAPTERS["lora"], **options)
    files = sorted(p.name for p in (tmp_path / "spectra").iterdir())
    assert files == ["step=3.safetensors", "step=6.safetensors"]
    tracked = Spectra.read(tmp_path / "spectra" / "step=6.safetensors")
    assert tracked.values.keys() == {"update", "latent", "weight"}
    for column in curves(tmp_path, "spectra/effective_rank/").values():
        assert sorted(column) == [3, 6]
    assert [bool(rows) for rows in seen] == [False, False, True] * 2 + [False]
    assert all(
        200 < rows <= 2 * 2 * 192 for layer_rows in seen for rows in layer_rows
    )  # two micro-batches of two packs, once


def test_the_cost_is_logged(tiny_llama, tmp_path):
    fit(tiny_llama, tmp_path, [SpectralTracker()])
    costs = curves(tmp_path, "spectra/cost")["spectra/cost"]
    assert sorted(costs) == [2, 4]
    assert all(0 < cost < 1 for cost in costs.values())


def test_activations_that_are_not_finite_are_named_and_stop_nothing(tiny_llama, tmp_path):
    class Poison(Callback):
        def on_validation_start(self, trainer, pl_module):
            if trainer.sanity_checking:
                return
            layer = pl_module.model.get_submodule("base_model.model.model.layers.2.self_attn.q_proj")
            layer.cera_up["default"].weight.data.fill_(float("nan"))

    with pytest.warns(UserWarning, match=r"No spectra at step 2: NaN .* model\.layers\.2\.self_attn\.q_proj"):
        _, _, trainer = fit(tiny_llama, tmp_path, [Poison(), SpectralTracker()])
    assert trainer.global_step == 4
    assert not list(tmp_path.glob("spectra/*"))


def test_a_resumed_run_writes_later_spectra_again(tiny_llama, tmp_path):
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra" / "step=9.safetensors").write_bytes(b"of steps after the checkpoint")
    fit(tiny_llama, tmp_path, [SpectralTracker()])
    files = sorted(p.name for p in (tmp_path / "spectra").iterdir())
    assert files == ["step=2.safetensors", "step=4.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 0}, "SpectralTracker.batches must be at least 1, got 0."),
        ({"every_n_steps": 0}, "SpectralTracker.every_n_steps must be at least 1, got 0."),
        ({"quantities": ["updates"]}, "SpectralTracker.quantities must be of update, latent, weight, got ['updates']."),
        ({"quantities": []}, "SpectralTracker.quantities must be of update, latent, weight, got []."),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SpectralTracker(**arguments)
