"""The peak memory of a forward and backward pass, computed on fake tensors through the run's own model and loss.

    module = CausalLM("meta-llama/Meta-Llama-3-8B", CeraConfig(r=128))
    activations(module, "bf16-true", rows=4, length=2048)  # bytes

Sizes are those of torch's CPU kernels: attention counts as ``sdpa`` unless it is ``eager``, and layers as uncompiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from lightning import Trainer
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from cera.memory.live_memory import LiveMemory, SelectedShare, materialize
from cera.models.backbone import build_skeleton
from cera.training.module import CausalLM
from cera.training.precision import base_dtype


def adapted_skeleton(module: CausalLM) -> Any:
    """Return the model that ``module.configure_model`` builds, in training mode, on the meta device."""
    base: Any = build_skeleton(module.base).requires_grad_(False)
    base.config.use_cache = False
    if module.attn_implementation == "eager":  # other kernels need a GPU, or are what transformers chooses
        base.set_attn_implementation("eager")
    model: Any = get_peft_model(base, module.peft_config(), low_cpu_mem_usage=True)
    if module.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def dtypes(module: CausalLM, precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Return the data types of frozen and of trained weights without DeepSpeed."""
    frozen = base_dtype(precision)
    return frozen, torch.float32 if module.adapter_dtype == "float32" else frozen


def activations(module: CausalLM, precision: str, rows: int, length: int, labelled: float = 1.0) -> int:
    """Return the peak bytes of the temporary tensors in one forward and backward pass of ``module.answer_nll``.

    Parameters and their gradients are assumed to exist already and are not counted.

    Args:
        module: The module to train. ``module.model`` and ``module.trainer`` are replaced.
        precision: Precision of the trainer.
        rows: Rows in a micro-batch.
        length: Tokens in a row.
        labelled: Share of the tokens that carry loss, in (0, 1].
    """
    with fake_step(module, precision, rows, length, labelled) as (step, live):
        step()
    return live.peak


@contextmanager
def fake_step(
    module: CausalLM, precision: str, rows: int, length: int, labelled: float = 1.0
) -> Iterator[tuple[Callable[[], None], LiveMemory]]:
    """Prepare one forward and backward pass on fake tensors, and yield what runs it and the memory that it takes.

    The arguments are those of ``activations``.
    """
    module.trainer = cpu_trainer(precision)
    model = module.model = adapted_skeleton(module)
    with module.trainer.precision_plugin.forward_context():
        _ = module.head_is_last  # builds and caches a skeleton, which must not be counted
    with FakeTensorMode():
        materialize(model, *dtypes(module, precision))
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        ids = torch.zeros(rows, length, dtype=torch.long)
        batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(length).expand(rows, length)}
        with SelectedShare(labelled), LiveMemory([*parameters, *gradients]) as live:

            def step() -> None:
                with module.trainer.precision_plugin.forward_context():
                    losses, _ = module.answer_nll(batch)
                losses.sum().backward()

            yield step, live


@cache
def cpu_trainer(precision: str) -> Trainer:
    """Return a trainer that stands for the run's precision."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, precision=precision, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
