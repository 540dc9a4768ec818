import numpy as np
import pytest
import torch
from lightning import Trainer
from peft import LoHaConfig, LoraConfig
from safetensors.torch import load_file

import cera
from callbacks import SpectralTracker
from cera.branches import find_branches
from cera.data import ChatData, GSMSymbolic
from cera.module import CausalLM
from cera.spectral import effective_rank, energy_rank

ADAPTERS = {
    "cera": cera.CeraConfig(r=8, dropout=0.1, scaling=0.5),
    "lora": LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1),
    "dora": LoraConfig(r=8, use_dora=True),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
}


def fit(base, adapter, folder, callbacks):
    torch.manual_seed(0)
    made = CausalLM(base, adapter, learning_rate=0.01)
    data = ChatData(GSMSymbolic(size=40), base, validation_rows=8, max_length=192, batch_size=2)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=4, val_check_interval=2, check_val_every_n_epoch=None,
        num_sanity_val_steps=-1, callbacks=callbacks, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(made, data)
    return made, data, trainer


@pytest.mark.parametrize("name", ADAPTERS)
def test_tracked_spectra_are_those_of_the_layers_outputs_minus_the_bases(tiny_llama, tmp_path, name):
    made, data, trainer = fit(tiny_llama, ADAPTERS[name], tmp_path, [SpectralTracker(batches=2)])
    spectra = load_file(tmp_path / "spectra" / "step=4.safetensors")
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
    assert metrics[f"spectra/effective_rank/{layer_name}"] == pytest.approx(effective_rank(spectra[layer_name]))
    assert metrics["spectra/auc_90/mean"] == pytest.approx(np.mean([energy_rank(s) for s in spectra.values()]))


def test_tracking_changes_no_number_of_the_training(tiny_llama, tmp_path):
    with_tracker, without = (
        fit(tiny_llama, ADAPTERS["cera"], tmp_path, callbacks)[0] for callbacks in ([SpectralTracker()], [])
    )
    for name, parameter in without.trainable().items():
        assert torch.equal(parameter, with_tracker.trainable()[name])


def test_no_hook_is_left_behind(tiny_llama, tmp_path):
    made, _, _ = fit(tiny_llama, ADAPTERS["lora"], tmp_path, [SpectralTracker()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.modules())


def test_errors():
    with pytest.raises(ValueError, match=r"SpectralTracker\.batches must be at least 1, got 0"):
        SpectralTracker(0)
