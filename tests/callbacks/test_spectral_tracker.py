import csv
import re

import numpy as np
import pytest
import torch
from fitting import fit
from lightning import Callback
from peft import AdaLoraConfig, LoHaConfig, LoraConfig

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
    assert tracked.values.keys() == {"update", "update_centred", "latent", "latent_centred", "weight"}
    for column in curves(tmp_path, "spectra/effective_rank/").values():
        assert sorted(column) == [3, 6]
    assert [bool(rows) for rows in seen] == [False, False, True] * 2 + [False]
    assert all(
        200 < rows <= 2 * 2 * 192 for layer_rows in seen for rows in layer_rows
    )  # two micro-batches of two packs, once


class StepsSeen(Callback):
    """Keeps the trained weights and the micro-batches of every optimizer step, as its forward passes read them."""

    def __init__(self):
        self.weights, self.batches = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step + 1
        self.weights[step] = {name: p.detach().clone() for name, p in pl_module.trainable().items()}
        self.batches.setdefault(step, []).append(batch)


def true_update(made, seen, step, layer_name):
    """The layer's output minus its base's in fp32, with the weights and on the micro-batches of one step."""
    with torch.no_grad():
        for name, parameter in made.trainable().items():
            parameter.copy_(seen.weights[step][name])
    layer = made.model.get_submodule(f"base_model.model.{layer_name}")
    outputs = {}
    handles = [
        layer.base_layer.register_forward_hook(lambda _, args, output: outputs.update(base=output.clone())),
        layer.register_forward_hook(lambda _, args, output: outputs.update(all=output)),
    ]
    rows = []
    for batch in seen.batches[step]:
        with torch.no_grad():
            made.model(batch["input_ids"], position_ids=batch["position_ids"])
        rows.append((outputs["all"] - outputs["base"])[batch["tokens"]].double())
    for handle in handles:
        handle.remove()
    return np.linalg.svd(torch.cat(rows).numpy(), compute_uv=False)


@pytest.mark.parametrize(
    "adapter",
    [
        cera.CeraConfig(r=8, scaling=0.5),
        LoraConfig(r=8),
        LoraConfig(r=8, use_dora=True),
        AdaLoraConfig(init_r=8, target_r=4, total_step=4, target_modules=["q_proj", "v_proj"]),
        LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
    ],
    ids=["cera", "lora", "dora", "adalora", "loha"],
)
def test_every_step_is_measured_with_the_weights_that_its_forward_read(tiny_llama, tmp_path, adapter):
    """The learning rate of the first step is 0, so W_down is still zero in the forward of the second."""
    adapter.lora_dropout = adapter.dropout = 0.0
    seen = StepsSeen()
    tracker = SpectralTracker(every_n_steps=1)
    made, _, _ = fit(tiny_llama, tmp_path, [seen, tracker], adapter=adapter, accumulate_grad_batches=2, warmup=0.5)
    assert list(tracker.history) == [1, 2, 3, 4]
    made.model.eval()
    layer_name = "model.layers.1.self_attn.q_proj"
    for step, spectra in tracker.history.items():
        measured = spectra.values["update"][layer_name].numpy()
        expected = true_update(made, seen, step, layer_name)[: len(measured)]
        if step <= 2:
            assert effective_rank(torch.tensor(measured)) == 0
            assert not expected.any()
        np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=5e-4 * expected[0])
    earlier, later = (true_update(made, seen, step, layer_name)[0] for step in (3, 4))
    assert later != pytest.approx(earlier, rel=0.05)  # the weights before the step and after it do make a difference


def test_validations_are_measured_with_the_weights_that_they_read(tiny_llama, tmp_path):
    """Another callback may exchange the weights for the validation, as Lightning's WeightAveraging does."""

    class Exchange(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            self.saved = {name: p.detach().clone() for name, p in pl_module.trainable().items()}
            for parameter in pl_module.trainable().values():
                parameter.data.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))

        def on_validation_epoch_end(self, trainer, pl_module):
            for name, parameter in pl_module.trainable().items():
                parameter.data.copy_(self.saved[name])

    tracker = SpectralTracker()
    fit(tiny_llama, tmp_path, [Exchange(), tracker], adapter=LoraConfig(r=8))
    layer_name = "model.layers.0.self_attn.q_proj"
    first, second = (spectra.values["update"][layer_name] for spectra in tracker.history.values())
    assert torch.equal(first, second)  # the same weights on the same input, whatever was trained in between


def test_an_adapted_head_that_reads_labelled_positions_only_is_named(tiny_llama, tmp_path):
    adapter, tracker = LoraConfig(r=4, target_modules=["q_proj", "lm_head"]), SpectralTracker()
    with pytest.warns(
        UserWarning, match=r"Step 4: No spectra of lm_head \(its activations .* have no row for each token"
    ):
        fit(tiny_llama, tmp_path, [tracker], adapter=adapter)
    assert list(tracker.history[4].values["update"]) == [f"model.layers.{i}.self_attn.q_proj" for i in range(4)]


def test_a_merged_adapter_is_said_and_has_no_spectra(tiny_llama, tmp_path):
    class Merge(Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.model.merge_adapter()

        def on_validation_end(self, trainer, pl_module):
            pl_module.model.unmerge_adapter()

    tracker = SpectralTracker()
    with pytest.warns(UserWarning, match="SpectralTracker measures nothing: the adapter 'default' is merged"):
        fit(tiny_llama, tmp_path, [Merge(), tracker], adapter=LoraConfig(r=8))
    assert not tracker.history


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
