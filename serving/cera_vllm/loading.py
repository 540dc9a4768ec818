"""A CeRA directory becomes what vLLM's managers hold: a ``LoRAModel`` that knows its activation."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path, parse_fine_tuned_lora_name
from vllm.lora.worker_manager import WorkerLoRAManager

from cera_vllm.adapter_files import PREFIX, AdapterSettings, method_of, read_branches, read_settings
from cera_vllm.fit import check_fit

CHECK_LORA = "CERA_VLLM_CHECK_LORA"
"""Environment variable: if set, LoRA adapters are held against the model, too. ``cera-serve`` sets it."""


class CeraModel(LoRAModel):
    """A CeRA adapter in the form of a LoRA, whose A is ``W_up`` and whose B is ``W_down``.

    Attributes:
        activation: Its activation, a name in ``cera_vllm.activations.CODES``.
        gammas: vLLM's name of each module -> the scalar of its learned mix.
    """

    activation: str
    gammas: dict[str, float]


@dataclass
class CeraHelper(PEFTHelper):
    """What vLLM asks of an adapter's settings. ``s`` is not tied to ``r``, as LoRA's alpha / r is."""

    settings: AdapterSettings = field(default=None)  # type: ignore[assignment]  # never left out

    def get_rank_and_scaling(self, module_name: str) -> tuple[int, float]:
        """Return the width of the latent beside a module, and the factor on its update."""
        return self.settings.rank(module_name), self.settings.scale(module_name)


Load = Callable[[WorkerLoRAManager, LoRARequest], LoRAModel]


def checked_loading(load: Load) -> Load:
    """Return ``WorkerLoRAManager._load_adapter`` with CeRA, and with checks that a whole adapter fits the model."""

    @functools.wraps(load)
    def load_adapter(self: WorkerLoRAManager, lora_request: LoRARequest) -> LoRAModel:
        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        is_cera = method_of(folder) == "CERA"
        if not is_cera and not os.environ.get(CHECK_LORA):
            return load(self, lora_request)
        settings = read_settings(folder)
        adapter = load_cera(self, lora_request, folder, settings) if is_cera else load(self, lora_request)
        check_fit(self._adapter_manager, adapter, settings)
        return adapter

    return load_adapter


def load_cera(manager: WorkerLoRAManager, request: LoRARequest, folder: Path, settings: AdapterSettings) -> CeraModel:
    """Read a CeRA adapter.

    Raises:
        AdapterError: It cannot be read.
        ValueError: Its rank is larger than the engine's ``max_lora_rank``.
    """
    ranks = {"r": settings.r, "rank_pattern": settings.rank_pattern}
    helper = CeraHelper(lora_alpha=settings.r, target_modules=[], settings=settings, **ranks)  # type: ignore[arg-type]
    helper.validate_legal(manager.lora_config)
    model = manager._adapter_manager.model
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is not None:
        mapper = mapper.get_rename_mapper()
    tensors: dict[str, Tensor] = {}
    gammas: dict[str, float] = {}
    for module, branch in read_branches(folder, settings).items():
        names = [f"{PREFIX}{module}.lora_{part}.weight" for part in "AB"]
        tensors |= zip(names, (branch.up, branch.down), strict=True)  # type: ignore[arg-type]
        if branch.gamma is not None:
            gammas[parse_fine_tuned_lora_name(names[0], mapper)[0]] = branch.gamma.item()
    adapter = cast(
        CeraModel,
        CeraModel.from_lora_tensors(
            lora_model_id=request.lora_int_id,
            tensors=tensors,
            peft_helper=helper,
            device="cpu",
            dtype=cast(torch.dtype, manager.lora_config.lora_dtype),
            weights_mapper=mapper,
        ),
    )
    adapter.activation = settings.activation
    adapter.gammas = gammas
    return adapter
