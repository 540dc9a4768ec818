"""The result of a linearization: a plain LoRA adapter that PEFT loads without this package.

linearization = cera.linearize(model, batches)
linearization.save("my-lora")
PeftModel.from_pretrained(base, "my-lora").merge_and_unload()
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from cera.adapters import CeraConfig
from cera.runs.adapter_settings import sort_sets
from cera.runs.files import give_usual_mode
from cera.spectral.layer_names import base_name


@dataclass(frozen=True)
class LinearizedLayer:
    """The linear map that replaces the update of one layer.

    Attributes:
        name: Name of the layer in the base model.
        rank: Rank of the map.
        fit_share: Share of the update's energy that the map reproduces on the data it was fitted to, in [0, 1].
        held_out_share: The same share on held-out data, ``1 - ||U - X W^T||^2 / ||U||^2``, at most 1. It is negative
            where the map is worse than no adapter.
        any_rank_share: The held-out share of the best linear map of any rank. It equals ``held_out_share`` unless
            ``rank`` is below the adapter's r.
        up: ``A``, (rank, in) fp32.
        down: ``B``, (out, rank) fp32, with orthonormal columns.
    """

    name: str
    rank: int
    fit_share: float
    held_out_share: float
    any_rank_share: float
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Linearization:
    """A plain LoRA adapter, and how well it reproduces the CeRA adapter that it was fitted to.

    Attributes:
        layers: The linearized layers, in the model's order.
        config: Configuration of the LoRA; its scaling is 1 in every layer.
        saved_modules: Weights of the modules that CeRA's ``modules_to_save`` trained, unchanged, by their key in the
            adapter's file.
        tokens: Number of tokens fitted to, and number held out.
    """

    layers: list[LinearizedLayer]
    config: LoraConfig
    saved_modules: dict[str, Tensor]
    tokens: tuple[int, int]

    @property
    def fit_share(self) -> float:
        """Mean of the layers' ``fit_share``."""
        return fmean([layer.fit_share for layer in self.layers])

    @property
    def held_out_share(self) -> float:
        """Mean of the layers' ``held_out_share``."""
        return fmean([layer.held_out_share for layer in self.layers])

    @property
    def any_rank_share(self) -> float:
        """Mean of the layers' ``any_rank_share``."""
        return fmean([layer.any_rank_share for layer in self.layers])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by the names that PEFT gives them in ``adapter_model.safetensors``."""
        tensors = dict(self.saved_modules)
        for layer in self.layers:
            tensors[f"base_model.model.{layer.name}.lora_A.weight"] = layer.up
            tensors[f"base_model.model.{layer.name}.lora_B.weight"] = layer.down
        return tensors

    def save(self, folder: str | Path) -> None:
        """Write the LoRA to ``folder`` in PEFT's format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        give_usual_mode(folder / "adapter_model.safetensors")
        self.config.save_pretrained(str(folder))
        sort_sets(folder, self.config)


def lora_config(
    model: nn.Module, config: CeraConfig, layers: list[LinearizedLayer], fan_in_fan_out: bool
) -> LoraConfig:
    """Return the configuration of a LoRA with the ranks of ``layers`` and a scaling of 1.

    Args:
        model: The PEFT model that ``layers`` belong to.
        config: Configuration of the CeRA adapter.
        layers: The linearized layers.
        fan_in_fan_out: Whether the base layers store their weights transposed.
    """
    rank = max(layer.rank for layer in layers)
    lower_ranks = {layer.name: layer.rank for layer in layers if layer.rank != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=lower_ranks,
        alpha_pattern=dict(lower_ranks),
        target_modules=_target_modules(model, {layer.name for layer in layers}),
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )


def _target_modules(model: nn.Module, adapted: set[str]) -> list[str]:
    """Return the last parts of the names if these match the adapted layers and no others, else the full names."""
    suffixes = {name.rpartition(".")[2] for name in adapted}
    names = {base_name(name) for name, _ in model.named_modules()}
    matches = {name for name in names if name.rpartition(".")[2] in suffixes}
    return sorted(suffixes if matches == adapted else adapted)


def saved_modules(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the weights that ``adapter`` saves beside CeRA's own, by their key in the adapter's file."""
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: tensor for name, tensor in tensors.items() if ".cera_" not in name}
