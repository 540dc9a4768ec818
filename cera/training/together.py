"""Trains several runs in one process over one copy of their frozen base.

Each run is all that it is in a process of its own, in a lane (``cera.runs.lanes``): its trainer, module, data,
callbacks, optimizer and run directory. What is done together is the forward and the backward pass of training: a run
that has a micro-batch asks for its losses, and one pass is made for several runs (``cera.training.stacked``). Each run
then computes the mean of its losses as it does alone, and asks for the gradients that follow. So the clipping of
gradients, learning rates, checkpoints and the end at a divergence are each run's own, and a run may be resumed alone,
or in other company.

A run that cannot be stacked says so in a warning, and is trained in its turn as in a process of its own.
"""

import dataclasses
import json
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from peft import LoraConfig, PeftConfig
from torch import Tensor, nn

from cera.adapters import CeraConfig
from cera.adapters.gaussian_lora import GaussianLoraConfig
from cera.models.backbone import load_model
from cera.models.packed_attention import add_document_bounds
from cera.runs.lanes import Lane
from cera.training import loss
from cera.training.stacked import Share, StackedModel, branches, shared_copy

LoadModel = Callable[..., nn.Module]
"""Loads a base; see ``cera.models.backbone.load_model``."""

POSITIONS = 2048
"""Most positions of a pass on a CPU, where larger products are no faster and memory is not to grow with the number of
runs. The runs beyond take turns. On a GPU all are in one pass."""

STACKABLE: dict[type[PeftConfig], set[str]] = {
    CeraConfig: {
        *("r", "scaling", "alpha", "activation", "dropout", "dropout_on", "init", "calibration_std", "init_weights"),
        *("rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    },
    LoraConfig: {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "alpha_pattern"),
        *("rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    },
}
"""Adapters that can be stacked, and the settings that they may have; any other one must be at its default."""
STACKABLE[GaussianLoraConfig] = {*STACKABLE[LoraConfig], "init_std"}

NOT_OF_ADAPTER = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
"""Fields of a PEFT configuration that do not say what the adapter computes."""

OF_ONE_ADAPTER = {
    *("scaling", "alpha", "dropout", "init", "calibration_std", "init_weights"),
    *("lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "alpha_pattern", "init_std"),
}
"""Settings that adapters of one pass may differ in."""


def reason_apart(module: Any) -> str | None:
    """Return why a ``CausalLM`` cannot be stacked, by its settings; ``None`` if it can be.

    Args:
        module: It has a trainer, and no model yet.
    """
    trainer, adapter = module.trainer, module.adapter
    allowed = STACKABLE.get(type(adapter))
    if allowed is None:
        names = " and ".join(kind.__name__ for kind in (CeraConfig, LoraConfig))
        return f"model.adapter is {type(adapter).__name__}, and only {names} can be stacked"
    plain = type(adapter)()
    for field in dataclasses.fields(adapter):
        value = getattr(adapter, field.name)
        if field.name not in allowed | NOT_OF_ADAPTER and value != getattr(plain, field.name):
            return f"model.adapter.{field.name}={value}"
    start = getattr(adapter, "init_lora_weights", True)
    if start not in (True, False, "gaussian"):
        return f"model.adapter.init_lora_weights={start} changes the base"
    for name in ("quantization", "gradient_checkpointing", "compile_layers"):
        if getattr(module, name):
            return f"model.{name}={getattr(module, name)}"
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return f"the strategy is {type(trainer.strategy).__name__}, not that of a single device"
    workers = getattr(trainer.datamodule, "num_workers", 0)
    return f"data.num_workers={workers} would fork a process of several threads" if workers else None


def shared_settings(module: Any) -> dict[str, Any]:
    """Return what must agree between the runs of a pass, by name."""
    adapter = {name: sorted(v) if isinstance(v, set) else v for name, v in module.peft_config().to_dict().items()}
    kept = {name: value for name, value in adapter.items() if name not in OF_ONE_ADAPTER | NOT_OF_ADAPTER}
    return {
        "model.base": module.base,
        "model.adapter": type(module.adapter).__name__,
        **{f"model.adapter.{name}": value for name, value in kept.items()},
        "model.adapter_dtype": module.adapter_dtype,
        "model.attn_implementation": module.attn_implementation,
        "trainer.precision": module.trainer.precision,
        "the device": str(module.trainer.strategy.root_device),
    }


def random_base(config: Any) -> str | None:
    """Return the setting by which a base draws random numbers in training, which no run would draw as it does apart."""
    for name, value in config.to_dict().items():
        if any(part in name for part in ("dropout", "pdrop", "jitter")) and isinstance(value, float) and value > 0:
            return f"its base has {name}={value}"
    return None


class Losses:
    """A request for the losses of a micro-batch."""

    def __init__(self, module: Any, share: Share) -> None:
        self.module = module
        self.share = share

    @property
    def positions(self) -> int:
        """Number of positions of the micro-batch, with padding."""
        rows, length = self.share.shape
        return rows * length


class Backward:
    """A request to add the gradients of the trained parameters to their ``grad``, given those of the losses."""

    def __init__(self, parameters: Sequence[Tensor], factors: Tensor) -> None:
        self.parameters = parameters
        self.factors = factors


class Companion:
    """One of the runs that are trained together, as its ``CausalLM`` knows it.

    Args:
        lane: Its lane.
        together: What all share.
    """

    def __init__(self, lane: Lane, together: "Together") -> None:
        self.lane = lane
        self.together = together
        self.stacked = False
        self._branches: Any = None
        self._losses: Tensor | None = None

    def join(self, module: Any) -> LoadModel:
        """Return how the base is loaded: shared with the other runs if this one can be stacked with them."""
        reason = reason_apart(module) or self.together.difference(self.lane.name, shared_settings(module))
        if reason is not None:
            self._warn(reason)
            return load_model
        self.stacked = True
        return self.together.base

    def losses(self, module: Any, batch: dict[str, Any]) -> Tensor:
        """Return the loss of each labelled token, (n,), for ``backward`` to come after its own."""
        if self.stacked and self._branches is None:
            self._branches = branches(module.model)
            reason = random_base(module.model.config.get_text_config())
            if self._branches is None:
                reason = "its adapter is more than branches beside linear layers"
            if reason is not None:
                self.stacked = False
                self._warn(reason)
        if not self.stacked or _is_watched(module.model):
            losses: Tensor = module.answer_nll(batch)[0]
            return losses
        values = self.lane.ask(Losses(module, Share(self._branches, batch, self.lane.random_numbers)))
        self._losses = values.requires_grad_()
        return self._losses

    def backward(self, module: Any) -> None:
        """Add the gradients of a micro-batch to the trained parameters; its loss has gone backward to its losses."""
        if self._losses is None:
            return
        parameters, factors = list(module.trainable().values()), self._losses.grad
        assert factors is not None
        self._losses = None
        self.lane.ask(Backward(parameters, factors))

    def _warn(self, reason: str) -> None:
        self.together.apart[self.lane.name] = reason
        warnings.warn(f"{self.lane.name} is trained apart from the others: {reason}.", stacklevel=3)


class Together:
    """What runs that are trained together share: the base, and the passes.

    Args:
        positions: Most positions of a pass, of which there is one micro-batch at least; ``None`` is ``POSITIONS`` on a
            CPU, and no limit on a GPU.

    Attributes:
        apart: Why runs are trained apart, by name.
        passes: Number of passes by number of runs.
        seconds: Time of the passes, and of the runs by themselves until their first micro-batch (``starts``), between
            passes (``steps``), and from the last one or their last error on (``ends``).
    """

    def __init__(self, positions: int | None = None) -> None:
        self.positions = positions
        self.apart: dict[str, str] = {}
        self.passes = Counter[int]()
        self.seconds = dict.fromkeys(("passes", "starts", "steps", "ends"), 0.0)
        self._first: tuple[str, dict[str, Any]] | None = None
        self._base: nn.Module | None = None
        self._model: StackedModel | None = None

    def difference(self, name: str, settings: dict[str, Any]) -> str | None:
        """Return in what a run differs from the first one so that it cannot be stacked with it; ``None`` in nothing.

        Args:
            name: Name of the run.
            settings: Its ``shared_settings``.
        """
        if self._first is None:
            self._first = name, settings
        first, expected = self._first
        for key, value in settings.items():
            if json.dumps(value, default=str) != json.dumps(expected.get(key), default=str):
                return f"{key} is {value}, and {expected.get(key)} in {first}"
        return None

    def base(self, *arguments: Any) -> nn.Module:
        """Return a base whose weights are those of all; see ``cera.models.backbone.load_model``."""
        if self._base is None:
            self._base = load_model(*arguments)
        model: nn.Module = shared_copy(self._base)
        return model

    def run(self, lanes: Sequence[Lane]) -> None:
        """Bring all lanes to their ends."""
        waiting = deque(lane for lane in lanes if self._resume(lane))
        while waiting:
            group = self._next(waiting)
            waiting.extend(self._pass(group))

    def _resume(self, lane: Lane, reply: Any = None) -> bool:
        """Resume a lane, and count its time; see ``Lane.resume``."""
        is_new, start = lane.request is None, time.perf_counter()
        goes_on = lane.resume(reply)
        self.seconds["starts" if is_new else "steps" if goes_on else "ends"] += time.perf_counter() - start
        return goes_on

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the ``with`` block as one of passes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds["passes"] += time.perf_counter() - start

    def _next(self, waiting: "deque[Lane]") -> list[Lane]:
        """Take the lanes of the next pass from those that wait."""
        device = waiting[0].request.module.device.type
        most = self.positions or (POSITIONS if device == "cpu" else None)
        group = [waiting.popleft()]
        while waiting and (
            most is None or (len(group) + 1) * max(lane.request.positions for lane in [*group, waiting[0]]) <= most
        ):
            group.append(waiting.popleft())
        return group

    def _pass(self, group: list[Lane]) -> list[Lane]:
        """Make the passes of one micro-batch of each lane, and return those that wait for the next one."""
        self.passes[len(group)] += 1
        requests: list[Losses] = [lane.request for lane in group]
        module = requests[0].module
        try:
            with self._counted(), module.trainer.precision_plugin.forward_context():
                losses, numbers = self._stacked(module).losses([request.share for request in requests])
            replies: Sequence[Any] = losses.detach().split(numbers)
        except Exception as error:  # such as too little memory: an error of each run
            replies = [error] * len(group)
        going = [lane for lane, reply in zip(group, replies, strict=True) if self._resume(lane, _own(reply))]
        backward = [lane for lane in going if isinstance(lane.request, Backward)]
        others = [lane for lane in going if lane not in backward]
        if not backward:
            return others
        reply: Exception | None = None
        try:
            with self._counted():
                self._backward(group, losses, numbers)
        except Exception as error:  # as above
            reply = error
        del losses, replies
        return [*others, *(lane for lane in backward if self._resume(lane, reply))]

    def _stacked(self, module: Any) -> StackedModel:
        if self._model is None:
            head = module.model.get_base_model().get_output_embeddings()
            autocast = module.trainer.precision if module.adapter_dtype == "float32" else None
            self._model = StackedModel(module.model, loss.supports_chunks(head) and module.head_is_last, autocast)
        return self._model

    @staticmethod
    def _backward(group: list[Lane], losses: Tensor, numbers: list[int]) -> None:
        """Add the gradients that the lanes of a pass ask for; a lane that has ended meanwhile has none."""
        factors: list[Tensor] = []
        parameters: list[Tensor] = []
        for lane, number in zip(group, numbers, strict=True):
            if isinstance(lane.request, Backward):
                factors.append(lane.request.factors)
                parameters += lane.request.parameters
            else:
                factors.append(losses.new_zeros(number))
        torch.autograd.backward(losses, torch.cat(factors), inputs=parameters)


def _is_watched(model: nn.Module) -> bool:
    """Return whether a module has a hook, as of a measurement, which a pass of several runs would not call."""
    hooks = (hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return any(hook is not add_document_bounds for hook in hooks)  # which the shared base has, too


def _own(reply: Any) -> Any:
    """Return a reply in memory of its own, which does not keep the others'."""
    return reply.clone() if isinstance(reply, Tensor) else reply
