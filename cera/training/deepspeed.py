"""DeepSpeed for Lightning, on GPUs and on CPUs (over gloo), with checkpoints that hold the adapter only.

Example:
    >>> Trainer(strategy=DeepSpeed(stage=3), devices=8)
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from cera.runs.checkpoints import CheckpointError
from cera.runs.files import sync_directory, sync_tree
from cera.training.compilation import prepare_compilation


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, with these differences:

    - It also runs on CPU processes over gloo (set ``DS_ACCELERATOR=cpu`` before torch is imported).
    - Under ZeRO-3 transformers loads the base partitioned, so that no rank holds all of it. Adapters are applied
      outside of ``zero.Init``, because PEFT cannot initialize a partitioned weight.
    - Checkpoints hold the adapter only, and their directory appears only when it is complete.

    DeepSpeed's checkpoint files are pickles: resume only from checkpoints that you trust.

    Args:
        stage: ZeRO stage, 0 to 3.
        options: Other arguments of ``lightning.pytorch.strategies.DeepSpeedStrategy``.

    Raises:
        ValueError: ``stage`` is not a ZeRO stage.
    """

    def __init__(self, stage: int = 2, **options: Any) -> None:
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"strategy.stage must be 0, 1, 2 or 3, got {stage}.")
        super().__init__(stage=stage, **options)

    def _auto_select_batch_size(self) -> int:
        # only for DeepSpeed's throughput log; Lightning would read it from a batch sampler, which a stream lacks
        return self.lightning_module.trainer.datamodule.batch_size  # type: ignore[union-attr,attr-defined]

    # CPU

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    def setup_environment(self) -> None:
        """Prepare the compilation of DeepSpeed's operations, then the accelerator."""
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        prepare_compilation(list(ALL_OPS), shared=self.num_nodes > 1)
        if not self._on_cpu:
            super().setup_environment()
            return
        if os.environ.get("DS_ACCELERATOR") != "cpu":
            raise RuntimeError("DeepSpeed on CPU needs the environment variable DS_ACCELERATOR=cpu.")
        self._process_group_backend = "gloo"
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    # Loading the base under ZeRO-3

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Do nothing: ``base_loading_context`` partitions the base, and DeepSpeed's engine the adapter."""
        self._init_config_if_needed()
        yield

    @contextmanager
    def base_loading_context(self) -> Iterator[None]:
        """Let transformers' ``from_pretrained`` partition the weights that it loads, if the stage is 3."""
        if not self.zero_stage_3:
            yield
            return
        from transformers.integrations import HfDeepSpeedConfig

        # transformers keeps a weak reference: ZeRO-3 is on for it as long as this object lives
        self._hf_config = HfDeepSpeedConfig(self.config)
        yield

    @property
    def extra_loss_scale(self) -> int:
        """Number of accumulated micro-batches, by which both Lightning and DeepSpeed divide the loss."""
        return self.lightning_module.trainer.accumulate_grad_batches  # type: ignore[union-attr]

    # Checkpoints

    def save_checkpoint(self, checkpoint: dict, filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint directory beside ``filepath``, then rename it. Every rank must call this."""
        target = Path(self.broadcast(filepath))
        unfinished = target.with_name(f".{target.name}.unfinished")
        if self.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        self.barrier()
        if self.is_global_zero:
            sync_tree(unfinished)
            if target.exists():
                shutil.rmtree(target)
            unfinished.rename(target)
            sync_directory(target.parent)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint directory; raise ``CheckpointError`` if it is incomplete, damaged or of another program."""
        if not (Path(checkpoint_path) / "checkpoint").is_dir():
            raise CheckpointError(f"{checkpoint_path} is not a whole DeepSpeed checkpoint directory.")
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        except CheckpointError:
            raise
        except Exception as error:  # torch and DeepSpeed raise many kinds of errors for a truncated file
            raise CheckpointError(f"{checkpoint_path} is damaged, or of another run ({error!r}).") from error
        if "cera" not in checkpoint:
            raise CheckpointError(f"{checkpoint_path} is not a checkpoint of this framework (it has no `cera` entry).")
        return checkpoint


def gather(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return full copies on the CPU of parameters that ZeRO-3 has partitioned. Every rank must call this.

    Args:
        parameters: Partitioned parameters by name.

    Returns:
        Tensors by the same names, in the parameters' dtype.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: p.detach().cpu().clone() for name, p in parameters.items()}
