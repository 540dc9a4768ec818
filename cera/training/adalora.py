"""AdaLoRA (Zhang et al. 2023) in a training step: the orthogonality penalty and the rank schedule.

PEFT's layers and rank allocator do the work; a training loop that computes its own loss has to call them.
"""

from typing import Any

import torch
from torch import Tensor

IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The allocator's statistics of each weight: sensitivity, its running mean, and its uncertainty."""


class RankSchedule:
    """Calls PEFT's rank allocator once per optimizer step, under any strategy.

    Args:
        model: A PEFT model whose adapter ``default`` is AdaLoRA.
    """

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.config = model.peft_config["default"]
        self.parameters = [p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad]
        self.factors = {n: p for n, p in model.named_parameters() if n.endswith(("lora_A.default", "lora_B.default"))}
        self.singular_values = [p for n, p in model.named_parameters() if n.endswith("lora_E.default")]
        self._gradients: list[Tensor | None] = []

    def penalty(self) -> Tensor:
        """Return ``orth_reg_weight`` times the mean over all A and B of ``||A A^T - I||_F`` and ``||B^T B - I||_F``.

        PEFT adds this scalar to a loss that the model computes itself; other training steps add it to theirs.
        """
        terms = []
        for name, p in self.factors.items():
            covariance = p @ p.T if "lora_A" in name else p.T @ p
            identity = torch.eye(len(covariance), dtype=p.dtype, device=p.device)
            terms.append(torch.linalg.matrix_norm((covariance - identity).float()))
        return self.config.orth_reg_weight * torch.stack(terms).mean()

    def before_step(self) -> None:
        """Copy the gradients under DeepSpeed, which partitions them and clears them in the step."""
        if self._sharded:
            from deepspeed.utils import safe_get_full_grad

            self._gradients = [safe_get_full_grad(p) for p in self.parameters]

    def after_step(self, step: int) -> None:
        """Update the importance of every weight and, in the steps that the schedule names, set ranks to zero.

        Args:
            step: Optimizer steps done, including this one. Gradients must not be cleared yet.
        """
        for p, gradient in zip(self.parameters, self._gradients, strict=False):
            p.grad = None if gradient is None else gradient.to(p.dtype)
        self.tuner.update_and_allocate(step)
        if self._sharded:
            from deepspeed.utils import safe_set_full_fp32_param

            for p in self.parameters:
                p.grad = None
            for p in self.singular_values:  # or the next step would restore them from the master weights
                safe_set_full_fp32_param(p, p.detach().float())

    @property
    def _sharded(self) -> bool:
        return hasattr(self.parameters[0], "_hp_mapping")

    def state_dict(self) -> dict[str, Any]:
        """Return the importances and the current ranks."""
        allocator = self.tuner.rankallocator
        return {**{name: dict(getattr(allocator, name)) for name in IMPORTANCE}, "ranks": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        device = self.parameters[0].device
        for name in IMPORTANCE:
            setattr(self.tuner.rankallocator, name, {k: v.to(device) for k, v in state[name].items()})
        self.config.rank_pattern = state["ranks"]
