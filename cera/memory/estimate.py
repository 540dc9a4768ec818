"""How much memory training takes, by method and ZeRO stage, without loading or downloading weights.

    python -m cera.memory.estimate --config configs/cera_r128.yaml --model.base=configs/models/llama-3-8b --devices 8
    python -m cera.memory.estimate --config configs/cera_r128.yaml --config configs/lora_r128.yaml --json memory.json

Each ``--config`` is a training run, and has a row for each ZeRO stage; any other option is one of ``train.py``, and
goes to all of them. Weights, gradients and the optimizer's state are counted. What a step makes and lets go of is
followed through the run's own model and loss, forward and backward, on tensors that have shapes and no content.

Sizes are those of torch's CPU kernels: attention is counted as ``sdpa`` there unless it is ``eager``, layers as they
are without ``model.compile_layers``. Not counted are Python and its libraries, the context of a GPU, workspaces within
kernels, and what an allocator holds back.
"""

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import PeftConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cera.cli.compose import Composing
from cera.cli.preflight import on_hub
from cera.cli.suggest import with_suggestion
from cera.data import ChatData, ChatDataset
from cera.memory.live_memory import LiveMemory, SelectedShare, materialize
from cera.models.backbone import build_skeleton
from cera.runs.checkpoints import replacing
from cera.runs.finished import adapter_label
from cera.training.module import CausalLM, base_dtype

STAGES = (0, 1, 2, 3)
PRECISIONS = ("bf16-true", "bf16-mixed", "16-true", "16-mixed", "32-true")
BYTES_PER_WEIGHT = {
    "nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256),  # 4 bit, a scale of 8 bit for 64, a scale in fp32 for 256 of those
    "int8": 1.0,  # and a scale in fp32 for a row, left out
}
PERSISTENT, LIVE = 10**5, 10**9
"""Under ZeRO-3, tensors of so many numbers at most are on all ranks (``stage3_param_persistence_threshold``), and so
many numbers at most are gathered at a time (``stage3_max_live_parameters``), but for a larger one: DeepSpeed's
defaults, and Lightning's."""

ASSUMPTIONS = """\
GiB for one device or process, of one micro-batch of `tokens`, {labelled:.0%} of them labelled; * as configured.
DeepSpeed's buffers: buckets of gradients at stages 1 and 2, one and gathered weights at 3. See also --help."""


# What is there all the time


@dataclass(frozen=True)
class Sizes:
    """Of the tensors of a model with an adapter.

    Attributes:
        frozen: (numbers, bytes per number) of each frozen parameter.
        trained: Numbers in each parameter that is trained.
        itemsize: Bytes of a trained number.
        dequantized: Bytes of the largest weight that a quantized layer has to dequantize.
    """

    frozen: Sequence[tuple[int, float]]
    trained: Sequence[int]
    itemsize: int
    dequantized: int = 0

    @classmethod
    def of(cls, model: Any, frozen: torch.dtype, trained: torch.dtype, quantization: str | None = None) -> "Sizes":
        """Count in a ``PeftModel``, on the meta device too.

        Args:
            model: Before any quantization.
            frozen: Data type of frozen parameters, except those quantized.
            trained: Of those that are trained.
            quantization: Of the linear layers except the head, by bitsandbytes.
        """
        head = model.get_base_model().get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head] if quantization else []
        quantized = {module.weight for module in linear if not module.weight.requires_grad}
        parameters = list(model.parameters())
        return cls(
            [
                (p.numel(), BYTES_PER_WEIGHT[quantization] if quantization and p in quantized else frozen.itemsize)
                for p in parameters
                if not p.requires_grad
            ],
            [p.numel() for p in parameters if p.requires_grad],
            trained.itemsize,
            max((weight.numel() * frozen.itemsize for weight in quantized), default=0),
        )

    def frozen_bytes(self, ranks: int = 1) -> int:
        """Of the frozen weights, each divided among ``ranks``."""
        return round(sum(math.ceil(numbers / ranks) * size for numbers, size in self.frozen))

    def trained_numbers(self, ranks: int = 1) -> int:
        """Of the trained weights, each divided among ``ranks``."""
        return sum(math.ceil(numbers / ranks) for numbers in self.trained)

    def gathered_bytes(self) -> int:
        """What a rank holds at a time, at most, of weights that ZeRO-3 divides."""
        sizes = [*self.frozen, *((numbers, self.itemsize) for numbers in self.trained)]
        small = sum(numbers * size for numbers, size in sizes if numbers <= PERSISTENT)
        large = [(numbers, size) for numbers, size in sizes if numbers > PERSISTENT]
        numbers = [numbers for numbers, _ in large]
        share = min(1.0, max(LIVE, *numbers) / sum(numbers)) if numbers else 0.0
        return round(small + share * sum(numbers * size for numbers, size in large))


# Bytes by purpose


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs at the peak of a training step, from the second micro-batch on.

    Attributes:
        frozen: Weights of the base.
        adapter: Weights that are trained, as the model computes with them.
        gradients: Of the micro-batches before; a further one's are added as they are made.
        optimizer: AdamW's two moments, and the fp32 master weights that DeepSpeed keeps.
        activations: What a forward and a backward pass make and let go of, or, if that is more, the gradients in fp32
            that DeepSpeed makes for the optimizer when these are gone.
        buffers: What the strategy needs for itself: buckets of gradients, gathered weights.
    """

    frozen: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(astuple(self))


def without_deepspeed(sizes: Sizes, activations: int, devices: int = 1) -> Memory:
    """Of one of ``devices``: moments in the weights' data type; with DDP, its buckets, a second copy of gradients."""
    trained = sizes.trained_numbers() * sizes.itemsize
    buckets = trained if devices > 1 else 0
    return Memory(sizes.frozen_bytes(), trained, trained, 2 * trained, activations, buckets)


@dataclass(frozen=True)
class ZeRO:
    """DeepSpeed as Lightning's strategy sets it up (Rajbhandari et al. 2020; DeepSpeed 0.19).

    - Stage 1 divides the optimizer's state among the ranks, stage 2 the gradients too, stage 3 all weights.
    - Moments and master weights are fp32; weights in fp32 are their own masters at stage 0 alone.
    - Stages 1 and 2 copy gradients to buckets while the backward pass lasts, two if communication overlaps with it;
      stage 3 always holds one, and whatever weights are gathered.

    Args:
        stage: 0 to 3.
        ranks: Devices.
        bucket: Numbers in a bucket (``reduce_bucket_size``).
        overlap: Whether there are two (``overlap_comm``).
    """

    stage: int
    ranks: int
    bucket: int = 200_000_000
    overlap: bool = True

    def memory(self, sizes: Sizes, activations: int) -> Memory:
        """Of one rank.

        Args:
            sizes: Of the model.
            activations: Bytes of a forward and backward pass.
        """
        weights, gradients, state = (self.ranks if self.stage >= stage else 1 for stage in (3, 2, 1))
        own = sizes.trained_numbers(state)
        master = 0 if self.stage == 0 and sizes.itemsize == 4 else 4 * own
        return Memory(
            frozen=sizes.frozen_bytes(weights),
            adapter=sizes.trained_numbers(weights) * sizes.itemsize,
            gradients=sizes.trained_numbers(gradients) * sizes.itemsize,
            optimizer=8 * own + master,
            activations=max(activations, master),
            buffers=self._buffers(sizes),
        )

    def _buffers(self, sizes: Sizes) -> int:
        bucket = self.bucket * sizes.itemsize
        if self.stage == 0:
            return 0
        return bucket + sizes.gathered_bytes() if self.stage == 3 else bucket * (2 if self.overlap else 1)


# What comes and goes in a step


def adapted_skeleton(module: CausalLM) -> Any:
    """The model that ``module.configure_model`` makes, in training mode, on the meta device."""
    base: Any = build_skeleton(module.base).requires_grad_(False)
    base.config.use_cache = False
    if module.attn_implementation == "eager":  # other kernels need a GPU, or are what transformers chooses
        base.set_attn_implementation("eager")
    model: Any = get_peft_model(base, module.peft_config(), low_cpu_mem_usage=True)
    if module.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def dtypes(module: CausalLM, precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Of frozen and of trained weights, as Lightning and ``module`` have them without DeepSpeed."""
    frozen = base_dtype(precision)
    return frozen, torch.float32 if module.adapter_dtype == "float32" else frozen


def activations(module: CausalLM, precision: str, rows: int, length: int, labelled: float = 1.0) -> int:
    """The peak of what one forward and backward pass of ``module.answer_nll`` makes and lets go of.

    Args:
        module: ``module.model`` and ``module.trainer`` are replaced.
        precision: The trainer's.
        rows: Of the micro-batch.
        length: Of a row, in tokens.
        labelled: Share of the tokens that carry loss, in (0, 1].

    Returns:
        Bytes, without parameters and their gradients, which are taken to be there already.
    """
    module.trainer = _trainer(precision)
    model = module.model = adapted_skeleton(module)
    with module.trainer.precision_plugin.forward_context():
        _ = module._ends_in_its_head  # builds a skeleton once, which is not to be counted
    with FakeTensorMode():
        materialize(model, *dtypes(module, precision))
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        ids = torch.zeros(rows, length, dtype=torch.long)
        batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(length).expand(rows, length)}
        with SelectedShare(labelled), LiveMemory([*parameters, *gradients]) as live:
            with module.trainer.precision_plugin.forward_context():
                losses, _ = module.answer_nll(batch)
            losses.sum().backward()
    return live.peak


@cache
def _trainer(precision: str) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, precision=precision, enable_model_summary=False, **quiet)  # type: ignore[arg-type]


# A training run, and its rows


@dataclass(frozen=True)
class Run:
    """What is read of a configuration.

    Attributes:
        name: Of its file.
        adapter: The adapter, as the paper calls it.
        module: Not built.
        rows: Of a micro-batch.
        length: Of a row, in tokens.
        precision: One of ``PRECISIONS``.
        stage: Its own ZeRO stage; ``None`` without DeepSpeed.
        devices: How many.
        bucket: See ``ZeRO``.
        overlap: See ``ZeRO``.
    """

    name: str
    adapter: str
    module: CausalLM
    rows: int
    length: int
    precision: str
    stage: int | None
    devices: int
    bucket: int = ZeRO.bucket
    overlap: bool = ZeRO.overlap


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        run: Whose.
        stage: Of ZeRO; ``None`` without DeepSpeed.
        memory: What a process needs.
    """

    run: Run
    stage: int | None
    memory: Memory

    def asdict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes."""
        about = {field.name: getattr(self.run, field.name) for field in fields(Run) if field.name != "module"}
        own = {"own_stage": about.pop("stage"), "base": self.run.module.base, "stage": self.stage}
        return {**about, **own, **asdict(self.memory), "total": self.memory.total}


def estimate(run: Run, labelled: float = 1.0) -> list[Row]:
    """A row for each ZeRO stage, and one before them for a run that has no DeepSpeed.

    Args:
        run: See ``read``.
        labelled: Share of the tokens that carry loss, in (0, 1].
    """
    module = run.module

    @cache
    def measured(precision: str) -> tuple[Sizes, int]:
        sizes = Sizes.of(adapted_skeleton(module), *dtypes(module, precision), module.quantization)
        peak = activations(module, precision, run.rows, run.length, labelled)
        return sizes, peak + sizes.dequantized

    rows = []
    if run.stage is None:
        rows.append(Row(run, None, without_deepspeed(*measured(run.precision), run.devices)))
    if module.adapter_dtype is None:  # which train.py refuses with DeepSpeed
        precision = run.precision.replace("mixed", "true")  # DeepSpeed casts weights, and no autocast is on
        for stage in STAGES:
            zero = ZeRO(stage, run.devices, run.bucket, run.overlap)
            rows.append(Row(run, stage, zero.memory(*measured(precision))))
    return rows


def table(rows: Sequence[Row]) -> str:
    """A Markdown table in GiB, and below it what was assumed."""
    purposes = [field.name for field in fields(Memory)]
    head = ["configuration", "method", "tokens", "devices", "ZeRO", *purposes, "total"]
    lines = [
        [
            row.run.name,
            row.run.adapter,
            f"{row.run.rows} x {row.run.length}",
            str(row.run.devices),
            f"{'none' if row.stage is None else row.stage}{' *' if row.stage == row.run.stage else ''}",
            *(f"{size / 2**30:.2f}" for size in (*astuple(row.memory), row.memory.total)),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rules = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    aligned = [
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (head, rules, *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


# The command line


class Parser(Composing, ArgumentParser):
    """Reads configuration files that include others."""


def parser() -> Parser:
    """All keys of ``train.py``, of which those of the model, the data and the trainer are read."""
    set_parsing_settings(subclasses_enabled=[PeftConfig, ChatDataset], omegaconf_absolute_to_relative_paths=True)
    made = Parser(parser_mode="omegaconf+", exit_on_error=False)
    made.add_argument("--config", action=ActionConfigFile)
    made.add_class_arguments(CausalLM, "model")
    made.add_class_arguments(ChatData, "data")
    made.link_arguments("model.base", "data.tokenizer")
    unread = ("callbacks", "logger", "plugins", "profiler")
    made.add_class_arguments(Trainer, "trainer", skip=set(unread))
    for key in (*(f"trainer.{name}" for name in unread), "seed_everything", "ckpt_path", "evaluation"):
        made.add_argument(f"--{key}", type=Any)
    for key in ("name", "runs", "checkpoint_every", "answer_tokens"):
        made.add_argument(f"--{key}", type=Any)
    return made


def read(file: str, overrides: Sequence[str] = (), devices: int | None = None) -> Run:
    """A configuration of ``train.py`` with overrides.

    Args:
        file: YAML.
        overrides: Options of ``train.py``.
        devices: How many; ``None`` for as many as the configuration names, and those of this machine where it names
            none.

    Raises:
        ValueError: The configuration is wrong, or sets something that is not estimated.
        jsonargparse.ArgumentError: It has a key or a value that ``train.py`` does not take.
    """
    if not Path(file).is_file():  # jsonargparse would take it for the configuration itself
        raise ValueError(f"no such configuration: {file}")
    reader = parser()
    try:
        config = reader.parse_args([f"--config={file}", *overrides])
    except (ArgumentError, ValueError) as error:
        raise ValueError(with_suggestion(str(error), sorted(action.dest for action in reader._actions))) from error
    if missing := on_hub(config.model.base, "model", "config.json"):
        raise ValueError(f"this machine lacks {missing[0]}. A directory with its config.json will do for --model.base.")
    only_model = Parser(exit_on_error=False)
    only_model.add_class_arguments(CausalLM, "model")
    module: CausalLM = only_model.instantiate(Namespace(model=config.model)).model
    module.check()
    stage, options = _strategy(config.trainer)
    return Run(
        name=Path(file).stem,
        adapter=adapter_label(config.model.adapter.class_path, config.model.adapter.init_args.as_dict()),
        module=module,
        rows=config.data.batch_size,
        length=config.data.max_length,
        precision=_precision(config.trainer.precision),
        stage=stage,
        devices=devices or _devices(config.trainer),
        **options,
    )


def _strategy(trainer: Namespace) -> tuple[int | None, dict[str, Any]]:
    """(ZeRO stage or ``None``, what the strategy sets of ``bucket`` and ``overlap``)."""
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if "fsdp" in name.lower() or "offload" in name:
        raise ValueError(f"trainer.strategy={name} is not estimated.")
    if "deepspeed" not in name.lower():
        return None, {}
    if isinstance(strategy, str):  # deepspeed, or deepspeed_stage_N
        return int(name[-1]) if name[-1].isdigit() else 2, {}
    options = strategy.init_args
    for option in ("offload_optimizer", "offload_parameters", "config"):
        if options.get(option):
            raise ValueError(f"trainer.strategy.init_args.{option}={options[option]} is not estimated; leave it unset.")
    known = {"bucket": options.get("reduce_bucket_size"), "overlap": options.get("overlap_comm")}
    return options.stage, {name: value for name, value in known.items() if value is not None}


def _precision(named: Any) -> str:
    precision = str(_trainer(named).precision) if named is not None else "32-true"
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)} to be estimated, got {named!r}.")
    return precision


def _devices(trainer: Namespace) -> int:
    named = trainer.devices
    if isinstance(named, list):
        return len(named) * trainer.num_nodes
    number = int(named) if str(named).isdigit() else 0
    return (number or max(1, torch.cuda.device_count())) * trainer.num_nodes


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed is imported for its options only
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # a trainer tells of GPUs that are not used
    usage = argparse.ArgumentParser(
        prog="python -m cera.memory.estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usage.add_argument("--config", action="append", required=True, metavar="FILE", help="a run; may be given again")
    usage.add_argument("--devices", type=int, help="how many GPUs or processes (default: as configured)")
    usage.add_argument("--labelled", type=float, default=1.0, help="share of tokens with loss (default: %(default)s)")
    usage.add_argument("--json", type=Path, metavar="FILE", help="where the rows go, in bytes")
    options, overrides = usage.parse_known_args(arguments)
    try:
        if options.devices is not None and options.devices < 1:
            raise ValueError(f"--devices must be at least 1, got {options.devices}.")
        if not 0 < options.labelled <= 1:
            raise ValueError(f"--labelled must be in (0, 1], got {options.labelled}.")
        runs = [read(file, overrides, options.devices) for file in options.config]
    except (ArgumentError, MisconfigurationException, OSError, TypeError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    rows = [row for run in runs for row in estimate(run, options.labelled)]
    print(f"{table(rows)}\n\n{ASSUMPTIONS.format(labelled=options.labelled)}")
    if options.json:
        with replacing(options.json) as file:
            file.write_text(json.dumps([row.asdict() for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
