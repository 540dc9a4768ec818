"""The LightningModule: a frozen causal language model, one PEFT adapter, and the paper's training recipe."""

import copy
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import AdaLoraConfig, PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

import cera.adapters  # noqa: F401  # makes CeRA a PeftConfig like the others
from cera.data.chat import IGNORE
from cera.models.backbone import Quantization, build_skeleton, load_model, load_tokenizer
from cera.models.compiled_layers import compile_layers
from cera.models.generate import generate
from cera.models.linear_cross_entropy import ends_in_its_head, linear_cross_entropy
from cera.models.output_head import head_reads
from cera.runs.checkpoints import CheckpointError, differences
from cera.training.adalora import RankSchedule
from cera.training.perplexity import Perplexity

UNSUPPORTED = {PeftType.XLORA, PeftType.POLY, PeftType.CPT}


class CausalLM(LightningModule):
    """Trains any PEFT adapter on any transformers causal language model.

    The recipe is the paper's (App. A): AdamW, linear warm-up over the first ``warmup`` of the steps, then a cosine
    to zero. The loss is the mean over the answer tokens of the whole optimizer step, over all ranks and accumulated
    micro-batches; logits are computed only where there is a label, and a few hundred tokens' at a time.

    Args:
        base: The frozen model: hub id, local directory, GGUF file or ``package://`` (see ``cera.models.backbone``).
        adapter: Any PEFT configuration.
        learning_rate: Peak learning rate.
        weight_decay: On matrices; vectors (norms, biases) never decay. The paper names none.
        betas: Of AdamW.
        warmup: Share of the steps, in [0, 1], over which the learning rate rises.
        quantization: Keep the base in ``"nf4"`` or ``"int8"`` (bitsandbytes).
        adapter_dtype: ``"float32"`` keeps the adapter's weights, gradients and optimizer state in fp32 when
            ``trainer.precision`` is ``bf16-true``: master weights. Its products are computed in bf16 all the same,
            under autocast. ``None`` gives the adapter the precision of the base. (bf16-mixed and 32-true have fp32
            weights anyway; DeepSpeed keeps fp32 master weights itself.)
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        compile_layers: Train with compiled layers (``cera.models.compiled_layers``): the same run but for rounding, and
            faster after a first step that compiles them. Needs a C++ compiler on a CPU, and no ZeRO-3.
        attn_implementation: transformers' name of the attention kernel; ``None`` lets it choose.
        max_new_tokens: Longest answer of ``predict``, in tokens.

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
        adapter_dtype: Literal["float32"] | None = None,
        gradient_checkpointing: bool = False,
        compile_layers: bool = False,
        attn_implementation: str | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"model.learning_rate must be a positive number, got {learning_rate}.")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"model.weight_decay must be zero or more, got {weight_decay}.")
        if not 0 <= warmup <= 1:
            raise ValueError(f"model.warmup is a share of the steps, in [0, 1], got {warmup}.")
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
        self.strict_loading = False  # a checkpoint holds the adapter only; on_load_checkpoint checks that it is whole
        self.model: PeftModel | None = None
        self.rank_schedule: RankSchedule | None = None
        self.perplexity = Perplexity()
        self.base_perplexity: float | None = None
        self._step_nll: float | Tensor = 0.0

    # Building

    def check(self) -> int:
        """Put the adapter on a skeleton of the base, without weights, and count what would be trained.

        Prompt-learning methods are refused: their virtual tokens do not fit packed documents.

        Returns:
            The number of trainable parameters.

        Raises:
            ValueError: The adapter does not fit the base; the message names the field and what would fit.
        """
        if self.adapter.is_prompt_learning or self.adapter.peft_type in UNSUPPORTED:
            raise ValueError(
                f"model.adapter: {type(self.adapter).__name__} is not supported by this training step yet."
            )
        skeleton = build_skeleton(self.base)
        self._check_names(skeleton)
        try:
            model = get_peft_model(skeleton, self.peft_config(), low_cpu_mem_usage=True)
        except NoMatchingPeftModuleError as error:
            raise ValueError(
                f"model.adapter.target_modules={getattr(self.adapter, 'target_modules', None)} matches nothing in "
                f"{self.base}. Its {_choices('target_modules', skeleton)}. ({error})"
            ) from error
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _check_names(self, skeleton: nn.Module) -> None:
        """Every name that the adapter lists must be there: PEFT passes over those that are not in silence."""
        modules = [name for name, _ in skeleton.named_modules()]
        parameters = [name for name, _ in skeleton.named_parameters()]

        def is_end(key: str, name: str) -> bool:
            return f".{name}".endswith(f".{key}")

        def is_pattern(key: str, name: str) -> bool:
            return re.match(rf"(.*\.)?({key})$", name) is not None

        listed = {
            "target_modules": (is_end, modules),
            "target_parameters": (is_end, parameters),
            "modules_to_save": (is_end, modules),
            "rank_pattern": (is_pattern, modules + parameters),
        }
        for field, (matches, names) in listed.items():
            keys = getattr(self.adapter, field, None)
            for key in sorted(keys) if isinstance(keys, list | set | dict) else ():
                if not any(matches(key, name) for name in names):
                    raise ValueError(
                        f"model.adapter.{field}: {key!r} matches nothing in {self.base}. "
                        f"Its {_choices(field, skeleton)}."
                    )

    def peft_config(self) -> PeftConfig:
        """A copy of ``adapter`` for a causal language model: PEFT writes to what it is given."""
        config = copy.deepcopy(self.adapter)
        config.task_type = TaskType.CAUSAL_LM
        return config

    def configure_model(self) -> None:
        """Load the base and put the adapter in; called once by the trainer, before weights are needed."""
        if self.model is not None:
            return
        if self.trainer.state.fn == "fit":
            self.check_steps(self.total_steps)
        if self.trainer.state.fn != "predict":  # which has no loss
            _ = self._ends_in_its_head  # found out now: from here on ZeRO-3 would partition the skeleton that it takes
        dtype = base_dtype(self.trainer.precision)
        loading = getattr(self.trainer.strategy, "base_loading_context", nullcontext)
        with loading():
            base = load_model(self.base, dtype, self.quantization, self.attn_implementation)
        fp32 = self.adapter_dtype == "float32"
        self.model = get_peft_model(base, self.peft_config(), autocast_adapter_dtype=fp32)
        # as the user names it, not the path of a converted copy in this machine's cache
        self.model.peft_config["default"].base_model_name_or_path = self.base
        if self.model.peft_config["default"].peft_type == PeftType.ADALORA:
            self.rank_schedule = RankSchedule(self.model)
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile_layers:
            compile_layers(self.model)
        self.model.train()  # transformers loads in eval mode, where dropout and checkpointing do nothing

    def check_steps(self, steps: int) -> None:
        """Raise ``ValueError`` if AdaLoRA's ranks would fall over another number of steps than those of the run."""
        if isinstance(self.adapter, AdaLoraConfig) and self.adapter.total_step != steps:
            raise ValueError(
                f"model.adapter.total_step={self.adapter.total_step} must be the number of steps of the run, {steps}: "
                "a configuration file can say ${trainer.max_steps}."
            )

    def to(self, *args: Any, **kwargs: Any) -> "CausalLM":
        """As ``nn.Module.to``, but ``bf16-true`` leaves the adapter in fp32 where asked, and the metric in fp64."""
        exact = {name: p.data for name, p in self.trainable().items()} if self.adapter_dtype == "float32" else {}
        super().to(*args, **kwargs)
        self.perplexity.set_dtype(torch.float64)
        for name, parameter in self.trainable().items() if exact else ():
            parameter.data = exact[name].to(parameter.device, torch.float32)  # not by way of bf16
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, and so the ones in a checkpoint, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return load_tokenizer(self.base)

    # The loss

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Logits of the adapted model: ``input_ids`` (batch, length) -> (batch, length, vocabulary)."""
        assert self.model is not None
        return self.model(input_ids=input_ids, **kwargs).logits

    def answer_nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each labelled token, given what comes before it.

        Args:
            batch: ``input_ids``, ``labels`` and ``position_ids``, each (batch, length).

        Returns:
            fp32 losses in nats (n,), in the order of the labels, and the mask (batch, length - 1) of the positions
            they are predicted from.
        """
        assert self.model is not None
        targets = batch["labels"][:, 1:]
        labelled = targets != IGNORE
        head = cast(PreTrainedModel, self.model.get_base_model()).get_output_embeddings()
        with self._autocast():
            if self._in_chunks(head):
                states: list[Tensor] = []

                def keep(hidden: Tensor) -> Tensor:
                    states.append(hidden)
                    return hidden[:, :0]  # no token is left for the head

                with head_reads(head, keep):
                    self(batch["input_ids"], position_ids=batch["position_ids"])
                return linear_cross_entropy(states[0][:, :-1][labelled], head, targets[labelled]), labelled
            # selecting before the head leaves to the model whatever it does to its logits (scaling, soft-capping)
            with head_reads(head, lambda hidden: hidden[:, :-1][labelled][None]):
                logits = self(batch["input_ids"], position_ids=batch["position_ids"])
        return F.cross_entropy(logits[0].float(), targets[labelled], reduction="none"), labelled

    def _in_chunks(self, head: nn.Module) -> bool:
        """Whether the head alone gives the loss: it is frozen, and the last thing in the model."""
        frozen = not any(p.requires_grad for p in head.parameters())
        return type(head) is nn.Linear and frozen and self._ends_in_its_head  # not a quantized one

    @cached_property
    def _ends_in_its_head(self) -> bool:
        return ends_in_its_head(build_skeleton(self.base))

    def _autocast(self) -> Any:
        # fp32 master weights beside a bf16 base: the adapter's products run in bf16 like the base's
        mixed = self.adapter_dtype == "float32" and self.trainer.precision == "bf16-true"
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    # Training

    def on_train_start(self) -> None:
        """Log the perplexity of the base, measured before the first step or kept in the checkpoint of step 0."""
        if self.base_perplexity is not None and self.trainer.global_step == 0:
            values = {"val/perplexity": self.base_perplexity, "val/loss": math.log(self.base_perplexity)}
            for logger in self.loggers:
                logger.log_metrics(values, step=0)

    def on_train_epoch_start(self) -> None:
        """Begin to add up the loss of a step."""
        self._step_nll = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by (seed, rank, step, micro-batch).

        Whatever else draws random numbers (callbacks, validation, loaders) cannot change a run, and a resumed run
        needs no state of a generator to go on as it would have.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        sequence = np.random.SeedSequence((seed, self.global_rank, self.trainer.global_step, micro_batch))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's share of the mean loss over the answer tokens of the whole optimizer step."""
        losses, _ = self.answer_nll(batch)
        nll = losses.sum()
        accumulate = self.trainer.accumulate_grad_batches
        # gradients are averaged over ranks and micro-batches, whatever each one's number of tokens: undo that
        per_token = self.trainer.world_size / batch["step_labels"]
        self._step_nll += nll.detach().item() if self.trainer.world_size == 1 else nll.detach()
        if (batch_idx + 1) % accumulate == 0:
            sync = self.trainer.world_size > 1
            self.log("train/loss", self._step_nll * per_token, prog_bar=True, sync_dist=sync)
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._step_nll = 0.0
        loss = nll * per_token * accumulate
        if self.rank_schedule is not None:
            loss = loss + self.rank_schedule.penalty()
        return loss * getattr(self.trainer.strategy, "extra_loss_scale", 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """AdaLoRA's rank schedule follows each step of the optimizer, before gradients are cleared."""
        super().optimizer_step(*args, **kwargs)
        batch_idx = args[1] if len(args) > 1 else kwargs["batch_idx"]
        # DeepSpeed counts micro-batches itself and is called for each
        if self.rank_schedule is not None and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.rank_schedule.after_step(self.trainer.global_step + 1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let AdaLoRA's rank schedule see the gradients."""
        if self.rank_schedule is not None:
            self.rank_schedule.before_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End with a validation, whenever the last one was: a stopping trainer makes one."""
        if self.trainer.global_step == self.total_steps:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter; linear warm-up, then cosine (paper App. A)."""
        trainable = self.trainable().values()
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = not self.trainer.precision.endswith("mixed")  # there Lightning would refuse to clip gradients
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.learning_rate, betas=self.betas, fused=fused
        )
        steps = self.total_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; for a number of epochs, by counting the steps of the first."""
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        steps = self.trainer.datamodule.steps_per_epoch()  # type: ignore[attr-defined]
        if isinstance(limit := self.trainer.limit_train_batches, int):
            steps = min(steps, math.ceil(limit / self.trainer.accumulate_grad_batches))
        return steps * cast(int, self.trainer.max_epochs)

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
            # the whole set, before the first step, when trainer.num_sanity_val_steps is -1: the base model itself
            if self.trainer.num_sanity_val_steps == math.inf:
                self.base_perplexity = perplexity.item()
            return
        self.log_dict({k: v.float() for k, v in values.items()}, prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the perplexity over the test set."""
        self.log("test/perplexity", self.perplexity.compute().float(), sync_dist=True)
        self.perplexity.reset()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, str]]:
        """Greedy answers to the batch's prompts.

        Returns:
            For each document ``prompt`` (up to its first answer), ``answer`` (the model's) and ``reference`` (the
            dataset's first answer).
        """
        assert self.model is not None
        records = []
        for ids, labels in _documents(batch):
            answered = (labels != IGNORE).nonzero().flatten().tolist()
            if not answered:
                continue  # padding
            start = answered[0]
            end = next((i for i in range(start, len(labels)) if labels[i] == IGNORE), len(labels))
            answer = generate(self.model, self.tokenizer, ids[:start], self.max_new_tokens)
            reference = self.tokenizer.decode(ids[start:end], skip_special_tokens=True)
            records.append({"prompt": self.tokenizer.decode(ids[:start]), "answer": answer, "reference": reference})
        return records

    # Checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapter only: the base is where it came from, and embeddings tied to the head would slip through."""
        kept = self.trainable()
        prefix = kwargs.get("prefix", "")
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k.removeprefix(prefix) in kept}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the checkpoint belongs to."""
        checkpoint["cera"] = {"identity": self._identity(), "base_perplexity": self.base_perplexity}
        if self.rank_schedule is not None:
            checkpoint["cera"]["rank_schedule"] = self.rank_schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base or adapter, with the reason."""
        if differing := differences(checkpoint["cera"]["identity"], self._identity()):
            raise CheckpointError(f"the checkpoint is of another run ({'; '.join(differing)}).")
        weights = checkpoint.get("state_dict")  # DeepSpeed keeps the weights in files of its own, and checks them
        if weights is not None and weights.keys() != self.trainable().keys():
            missing = sorted(self.trainable().keys() - weights.keys())
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} of the adapter's weights, such as {missing[:1]}."
            )
        self.base_perplexity = checkpoint["cera"]["base_perplexity"]
        if self.rank_schedule is not None:
            self.rank_schedule.load_state_dict(checkpoint["cera"]["rank_schedule"])

    def _identity(self) -> str:
        """Base, adapter and recipe as sorted JSON: what must agree for the checkpoint's state to mean the same."""
        settings = {k: sorted(v) if isinstance(v, set) else v for k, v in self.peft_config().to_dict().items()}
        del settings["peft_version"]
        recipe = {name: getattr(self, name) for name in ("learning_rate", "weight_decay", "betas", "warmup")}
        base = str(Path(self.base).resolve()) if Path(self.base).exists() else self.base
        return json.dumps({**settings, **recipe, "base": base}, sort_keys=True, default=str)


def base_dtype(precision: str) -> torch.dtype:
    """Of the base's weights under a trainer's ``precision``."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)


def _choices(field: str, skeleton: nn.Module) -> str:
    """What ``field`` could name, by the last parts of the names: linear modules, or the weights of fused experts."""
    if field == "target_parameters":
        kind = "fused experts' weights"
        names = {".".join(name.split(".")[-2:]) for name, p in skeleton.named_parameters() if p.ndim == 3}
    else:
        kind = "linear modules"
        names = {n.rpartition(".")[2] for n, m in skeleton.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    return f"{kind} are {', '.join(sorted(names)) or 'none'}"


def _documents(batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split packed rows at the positions that start again at 0; yields (ids, labels), each (n,)."""
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[start:end], labels[start:end]
