"""Callbacks as a library: in a Lightning trainer of one's own, in any order, under both of their names."""

import importlib

import pytest
import torch
from command_line import command, run
from conftest import REPOSITORY
from lightning import LightningModule, Trainer
from peft import get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import cera
import cera.callbacks
from cera.spectral import effective_rank
from cera.spectral.files import Spectra, spectra_files


def test_the_folder_of_a_clone_and_the_package_give_the_same_classes():
    in_clone = importlib.import_module("callbacks")
    assert in_clone.__all__ == cera.callbacks.__all__
    assert all(getattr(in_clone, name) is getattr(cera.callbacks, name) for name in in_clone.__all__)


class OwnModule(LightningModule):
    """A module of a user's own: a PEFT model under some name, batches that are plain dictionaries."""

    def __init__(self, base: str) -> None:
        super().__init__()
        config = cera.CeraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False, dropout=0.0)
        self.llm = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)

    def training_step(self, batch, batch_idx):
        return self.llm(**batch, labels=batch["input_ids"]).loss

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_the_tracker_works_in_a_trainer_of_ones_own(tiny_llama, tmp_path, padded):
    ids = torch.randint(0, 1000, (4, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids]
    if padded:
        mask = torch.ones(12, dtype=torch.long)
        mask[8:] = 0
        rows = [{"input_ids": row, "attention_mask": mask} for row in ids]
    loader = DataLoader(rows, batch_size=2)
    module = OwnModule(tiny_llama)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        callbacks=[cera.callbacks.SpectralTracker(batches=2)],
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    spectra = Spectra.read(spectra_files(tmp_path)[2])
    name = "model.layers.0.self_attn.q_proj"
    layer = module.llm.get_submodule(f"base_model.model.{name}")
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    module.eval()
    with torch.no_grad():
        for batch in loader:
            module.llm(**batch)
        handle.remove()
        h = torch.cat([layer.update(x, "default")[:, : 8 if padded else 12].flatten(0, 1) for x in inputs])
        everything = torch.cat([layer.update(x, "default").flatten(0, 1) for x in inputs])
    sigma = spectra.values["update"][name]
    torch.testing.assert_close(sigma, torch.linalg.svdvals(h.double())[:4], rtol=1e-4, atol=1e-7)
    if padded:
        assert not torch.allclose(sigma, torch.linalg.svdvals(everything.double())[:4], rtol=1e-3)
    logged = trainer.callback_metrics["spectra/effective_rank/mean"]
    ranks = [effective_rank(values) for values in spectra.values["update"].values()]
    assert logged.item() == pytest.approx(sum(ranks) / len(ranks), rel=1e-5)


def test_the_dashboard_draws_the_trackers_spectra_whatever_their_order(tiny_llama, tmp_path):
    tags = []
    for order in (("SpectralTracker", "Dashboard"), ("Dashboard", "SpectralTracker")):
        name = "-".join(order)
        callbacks = "".join(f"    - class_path: cera.callbacks.{callback}\n" for callback in order)
        config = tmp_path / f"{name}.yaml"
        smol = REPOSITORY / "configs" / "smol_cera.yaml"
        config.write_text(f"include: [{smol}]\ntrainer:\n  callbacks:\n{callbacks}")
        run(command(tiny_llama, tmp_path, f"--name={name}", config=str(config)))
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        tags.append({kind: sorted(events.Tags()[kind]) for kind in ("images", "histograms")})
        steps = {event.step for event in events.Images("spectra/spectral signature")}
        assert steps == {4, 8}
    assert tags[0] == tags[1]
    assert tags[0]["images"]
    assert tags[0]["histograms"]
