"""The LightningModule: a frozen causal language model, one PEFT adapter, and the paper's training recipe.

Example:
    >>> module = CausalLM("meta-llama/Llama-3.2-1B", CeraConfig(r=64), learning_rate=3e-4)
    >>> Trainer(max_steps=1000).fit(module, ChatData(GSM8K(), "meta-llama/Llama-3.2-1B"))
"""

import copy
import math
import os
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig, PeftModel, PeftType, TaskType
from torch import Tensor
from transformers import PreTrainedModel

import cera.adapters  # noqa: F401  # registers CeRA with PEFT
from cera.data import ChatData
from cera.models.backbone import Quantization, build_skeleton, load_model, load_tokenizer
from cera.models.linear_cross_entropy import ends_in_its_head
from cera.training import accumulation, adapter_state, checks, loss
from cera.training.adalora import RankSchedule
from cera.training.adapted_model import adapted_model
from cera.training.calibration import calibrate_before_training
from cera.training.documents import answers
from cera.training.gammas import gammas
from cera.training.perplexity import Perplexity
from cera.training.precision import AdapterDtype, adapter_autocast, base_dtype, kept_in_fp32
from cera.training.recipe import RECIPE, Schedule, adamw, check_recipe, schedule_with_warmup, seed_dropout
from cera.training.step_loops import WholeSteps
from cera.training.together import Companion


class CausalLM(adapter_state.AdapterModule):
    """Trains any PEFT adapter on any transformers causal language model.

    The recipe is the paper's by default (App. A): AdamW, linear warm-up, then a cosine to zero. The loss is the mean
    over the labelled tokens of the whole step, over all ranks and micro-batches (see ``cera.training.loss``).

    Args:
        base: The frozen model, as ``cera.models.backbone`` reads its name.
        adapter: Any PEFT configuration.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of matrices; vectors (norms, biases) never decay. The paper names none.
        betas: AdamW's coefficients of the running averages.
        warmup: Share of the steps, in [0, 1], over which the learning rate rises.
        schedule: Whether the learning rate then falls to zero with a cosine, or is constant.
        loss_mean: Whether the mean is over the tokens of a ``"step"``, or of the means over each ``"micro_batch"``.
        quantization: Keep the base in ``"nf4"`` or ``"int8"`` (bitsandbytes).
        adapter_dtype: ``"float32"`` keeps the adapter's weights and optimizer state in fp32 beside a base of
            ``bf16-true``; its products are in bf16. ``None`` gives it the base's precision.
        gradient_checkpointing: Recompute activations in the backward pass instead of storing them.
        compile_layers: Train with compiled layers (``cera.models.compiled_layers``); other results by rounding only.
        attn_implementation: transformers' name of the attention kernel; ``None`` lets it choose.
        max_new_tokens: Maximum length of an answer of ``predict``, in tokens.

    Raises:
        ValueError: A number is out of its range; the message names it.
    """

    def __init__(
        self,
        base: str,
        adapter: PeftConfig,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.03,
        quantization: Quantization | None = None,
        adapter_dtype: AdapterDtype = None,
        gradient_checkpointing: bool = False,
        compile_layers: bool = False,
        attn_implementation: str | None = None,
        max_new_tokens: int = 256,
        schedule: Schedule = "cosine",
        loss_mean: loss.Mean = "step",
    ) -> None:
        super().__init__()
        check_recipe(learning_rate, weight_decay, warmup, betas)
        if max_new_tokens < 1:
            raise ValueError(f"model.max_new_tokens must be 1 or more, got {max_new_tokens}.")
        self.base = base
        self.adapter = adapter
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup = warmup
        self.quantization = quantization
        self.adapter_dtype = adapter_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_layers = compile_layers
        self.attn_implementation = attn_implementation
        self.max_new_tokens = max_new_tokens
        self.schedule = schedule
        self.loss_mean = loss_mean
        self.companion: Companion | None = None  # of a run that is trained together with others
        self.resumes = False  # the command line sets it: Lightning reveals a checkpoint only after configure_model
        self.model: PeftModel | None = None
        self.rank_schedule: RankSchedule | None = None
        self.perplexity = Perplexity()
        self.base_perplexity: float | None = None
        self._step_loss: float | Tensor = 0.0

    # Checks and building

    def check(self) -> int:
        """Check that the adapter fits the base, and return how many parameters it trains; see ``count_trained``."""
        return checks.count_trained(self.base, self.peft_config())

    def peft_config(self) -> PeftConfig:
        """Return a copy of ``adapter`` for a causal language model; PEFT writes to the configuration it is given."""
        config = copy.deepcopy(self.adapter)
        config.task_type = TaskType.CAUSAL_LM
        return config

    def configure_model(self) -> None:
        """Load the base and apply the adapter; the trainer calls this once, before it needs weights."""
        if self.model is not None:
            return
        if self.trainer.state.fn == "fit":
            accumulation.check_whole_steps(self.trainer)
            checks.check_adalora_steps(self.adapter, self.total_steps)
        if self.trainer.state.fn != "predict":  # which computes no loss
            _ = self.head_is_last  # cached before ZeRO-3 is on, which would partition the skeleton
        loading = getattr(self.trainer.strategy, "base_loading_context", nullcontext)
        self.model = adapted_model(
            self.base,
            self.peft_config(),
            base_dtype(self.trainer.precision),
            loading(),
            self.adapter_dtype == "float32",
            self.quantization,
            self.attn_implementation,
            self.gradient_checkpointing,
            self.compile_layers,
            load_model if self.companion is None else self.companion.join(self),
        )
        if self.trainer.state.fn == "fit" and not self.resumes:
            calibrate_before_training(self.model, self.trainer)
        if self.model.peft_config["default"].peft_type == PeftType.ADALORA:
            self.rank_schedule = RankSchedule(self.model)

    def to(self, *args: Any, **kwargs: Any) -> "CausalLM":
        """Move and cast as ``nn.Module.to``, but keep fp32 master weights in fp32 and the perplexity in fp64."""
        with kept_in_fp32(self) if self.adapter_dtype == "float32" else nullcontext():
            super().to(*args, **kwargs)
        self.perplexity.set_dtype(torch.float64)
        return self

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, with the template of the data."""
        tokenizer = load_tokenizer(self.base)
        data = getattr(self._trainer, "datamodule", None)
        return data.with_template(tokenizer) if isinstance(data, ChatData) else tokenizer

    # Loss

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Return the logits of the adapted model: (batch, length) -> (batch, length, vocabulary)."""
        assert self.model is not None
        return self.model(input_ids=input_ids, **kwargs).logits

    def answer_nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood of each labelled token; see ``cera.training.loss.answer_nll``."""
        assert self.model is not None
        head = cast(PreTrainedModel, self.model.get_base_model()).get_output_embeddings()
        chunked = loss.supports_chunks(head) and self.head_is_last
        fp32_adapter = self.adapter_dtype == "float32"
        with adapter_autocast(self.trainer.precision, self.device.type) if fp32_adapter else nullcontext():
            return loss.answer_nll(self, head, batch, chunked)

    @cached_property
    def head_is_last(self) -> bool:
        """Whether the base returns its head's output unchanged, so that the head alone gives the loss."""
        return ends_in_its_head(build_skeleton(self.base))

    # Training

    def on_train_start(self) -> None:
        """Log the base's perplexity, measured before the first step or stored in the checkpoint of step 0."""
        self._step_loss = 0.0
        if self.base_perplexity is not None and self.trainer.global_step == 0:
            values = {"val/perplexity": self.base_perplexity, "val/loss": math.log(self.base_perplexity)}
            for logger in self.loggers:
                logger.log_metrics(values, step=0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, rank, step, micro-batch)."""
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        seed_dropout(int(os.environ.get("PL_GLOBAL_SEED", 0)), self.global_rank, self.trainer.global_step, micro_batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return this micro-batch's share of the mean loss over the labelled tokens of the whole optimizer step."""
        losses = self.answer_nll(batch)[0] if self.companion is None else self.companion.losses(self, batch)
        accumulate, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        within, across = loss.weights(self.loss_mean, losses.numel(), batch["step_labels"], accumulate, ranks)
        share = losses.sum() * within
        self._step_loss += share.detach().item() if ranks == 1 else share.detach()
        if (batch_idx + 1) % accumulate == 0:
            self.log("train/loss", self._step_loss * across, prog_bar=True, sync_dist=ranks > 1)
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._step_loss = 0.0
        step_loss = share * across * accumulate
        if self.rank_schedule is not None:
            step_loss = step_loss + self.rank_schedule.penalty()
        return step_loss * getattr(self.trainer.strategy, "extra_loss_scale", 1)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of a micro-batch, of runs that are trained together in one pass."""
        super().backward(loss, *args, **kwargs)
        if self.companion is not None:
            self.companion.backward(self)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Advance AdaLoRA's rank schedule after each step of the optimizer, before gradients are cleared."""
        super().optimizer_step(*args, **kwargs)
        batch_idx = args[1] if len(args) > 1 else kwargs["batch_idx"]
        # DeepSpeed counts micro-batches itself, and this method is called for each of them
        if self.rank_schedule is not None and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.rank_schedule.after_step(self.trainer.global_step + 1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let AdaLoRA's rank schedule read the gradients."""
        if self.rank_schedule is not None:
            self.rank_schedule.before_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, because a trainer that stops runs a final validation."""
        if self.trainer.global_step == self.total_steps:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW on the adapter, with its schedule."""
        fused = not self.trainer.precision.endswith("mixed")  # with which Lightning could not clip gradients
        optimizer = adamw(self.trainable().values(), self.learning_rate, self.weight_decay, self.betas, fused)
        schedule = schedule_with_warmup(optimizer, self.schedule, self.warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; see ``cera.training.accumulation.total_steps``."""
        return accumulation.total_steps(self.trainer)

    # Validation, test, predict

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the perplexity."""
        losses, _ = self.answer_nll(batch)
        self.perplexity.update(losses.sum(), losses.numel())

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity over the whole validation set and all ranks."""
        perplexity = self.perplexity.compute()
        self.perplexity.reset()
        values = {"val/perplexity": perplexity, "val/loss": perplexity.log()}
        if self.trainer.sanity_checking:
            # with trainer.num_sanity_val_steps=-1 the sanity check measures the base on the whole set
            if self.trainer.num_sanity_val_steps == math.inf:
                self.base_perplexity = perplexity.item()
            return
        self.log_dict({k: v.float() for k, v in values.items()}, prog_bar=True, sync_dist=True)
        self.log_dict(gammas(self))

    def on_test_epoch_end(self) -> None:
        """Log the perplexity over the test set."""
        self.log("test/perplexity", self.perplexity.compute().float(), sync_dist=True)
        self.perplexity.reset()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, str]]:
        """Answer the batch's prompts greedily; see ``cera.training.documents.answers``."""
        return answers(self.model, self.tokenizer, batch, self.max_new_tokens)

    # Checkpoints

    def configure_callbacks(self) -> list[Callback]:
        """Let every checkpoint be of a whole step, whichever callback writes it."""
        return [WholeSteps()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's identity, the base's perplexity and AdaLoRA's state to the checkpoint."""
        checkpoint["cera"] = {
            "identity": self._identity(),
            "base_perplexity": self.base_perplexity,
            "accumulate": self.trainer.accumulate_grad_batches,
        }
        if self.rank_schedule is not None:
            checkpoint["cera"]["rank_schedule"] = self.rank_schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added; raise ``CheckpointError`` for a checkpoint of another run."""
        adapter_state.rename_weights(checkpoint, getattr(self.model, "base_model", None))
        adapter_state.check_checkpoint(checkpoint, self._identity(), self.trainable())
        self.base_perplexity = checkpoint["cera"]["base_perplexity"]
        now = self.trainer.accumulate_grad_batches
        accumulation.rescale(checkpoint["loops"]["fit_loop"], checkpoint["cera"].get("accumulate", now), now)
        if self.rank_schedule is not None:
            self.rank_schedule.load_state_dict(checkpoint["cera"]["rank_schedule"])

    def _identity(self) -> str:
        recipe = {}
        if self.trainer.state.fn == "fit":  # other commands use the weights alone
            recipe = {name: getattr(self, name) for name in RECIPE}
            recipe["max_steps"] = self.total_steps
        return adapter_state.identity(self.base, self.peft_config(), recipe)
