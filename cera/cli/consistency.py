"""Checks of model, data and trainer against each other, made before anything is loaded or written."""

from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cera.data import ChatData
from cera.evaluation.evaluate import Evaluation
from cera.training.accumulation import check_whole_steps
from cera.training.calibration import check_calibration
from cera.training.checks import check_adalora_steps
from cera.training.module import CausalLM


def check_consistency(
    subcommand: str,
    model: CausalLM,
    data: ChatData,
    trainer: Trainer,
    max_epochs: int | None,
    evaluation: Evaluation | None,
) -> None:
    """Raise ``ValueError`` if model, data, trainer and evaluation do not go together; the message names the field.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        model: The module, without weights.
        data: The data module, before it reads anything.
        trainer: The trainer.
        max_epochs: ``trainer.max_epochs`` as configured.
        evaluation: What ``test`` evaluates beside the perplexity.
    """
    if subcommand == "fit":
        _check_length(trainer, data, max_epochs)
        check_whole_steps(trainer)
        check_calibration(model.adapter, trainer.strategy)
    data.check()
    _check_attention(model.attn_implementation)
    _check_strategy(model, trainer, evaluation if subcommand == "test" else None)
    if subcommand == "fit" and trainer.max_steps > 0:
        check_adalora_steps(model.adapter, trainer.max_steps)


def _check_length(trainer: Trainer, data: ChatData, max_epochs: int | None) -> None:
    if trainer.max_steps > 0:
        return
    if trainer.max_steps == 0:
        raise ValueError("trainer.max_steps must be positive, got 0.")
    if data.dataset.streaming:
        raise ValueError("trainer.max_steps must be set: the length of a stream is not known beforehand.")
    if (max_epochs or -1) < 1:
        raise ValueError("trainer.max_steps or trainer.max_epochs must be set, to a positive number.")


def _check_attention(name: str | None) -> None:
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if name is not None and name not in known and "/" not in name:  # ORGANIZATION/NAME is a kernel on the hub
        raise ValueError(f"model.attn_implementation must be one of {', '.join(known)}, got {name!r}.")


def _check_strategy(model: CausalLM, trainer: Trainer, evaluation: Evaluation | None) -> None:
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy):
        return
    if model.adapter_dtype is not None:
        raise ValueError("model.adapter_dtype: DeepSpeed keeps fp32 master weights itself; leave it unset.")
    if model.compile_layers and strategy.zero_stage_3:
        raise ValueError("model.compile_layers: ZeRO-3 gathers each module's weights by hooks; leave it unset.")
    if evaluation is not None and strategy.zero_stage_3:
        raise ValueError("evaluation: under ZeRO-3 no rank can generate by itself; use `cera evaluate` on the run.")
