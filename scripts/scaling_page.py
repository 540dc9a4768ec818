"""Writes docs/scaling.md: memory, speed and cost of CeRA on Llama-3-8B and 70B from estimates alone, on no GPU.

    python scripts/scaling_page.py > docs/scaling.md

Memory is that of ``cera estimate``, time that of ``cera.memory.roofline``, and reading was measured by
``scripts/data_reading.py``. The text is docs/scaling.md.j2, in which no number is typed. The bytes are the same each
time.
"""

import json
import logging
import math
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined

from cera import CeraConfig
from cera.cli.tables import table
from cera.memory.activations import adapted_skeleton
from cera.memory.model_states import Memory, Sizes, ZeRO, without_deepspeed
from cera.memory.roofline import GATHERS, H100, communication_seconds, trace
from cera.training.module import CausalLM
from cera.training.throughput import TrainingFlops

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = REPOSITORY / "docs" / "scaling.md.j2"
MODELS = {"8B": "llama-3-8b", "70B": "llama-3-70b"}
TARGETS = {
    "q, v": ["q_proj", "v_proj"],
    "all linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
RANKS = (64, 128, 512)
GPUS = (1, 8, 64, 512)

ROWS, LENGTH = 2, 2048
TOKENS = ROWS * LENGTH
"""Tokens of a micro-batch, as in configs/parts/llama3.yaml."""

MICRO_BATCHES = 64
"""Micro-batches of a step over all GPUs, as on eight by configs/parts/llama3.yaml; one for each GPU at least."""

RUN_STEPS, VALIDATE_EVERY, VALIDATION_ROWS = 2000, 200, 1000
"""As in configs/parts/llama3.yaml."""

PROBLEMS, SAMPLES, ANSWER, BATCH = 5000, 10, 1024, 40
"""MATH with ten samples: problems, samples, tokens of the longest answer, sequences in a batch (eval_math_pass10)."""

PROMPT = 256
"""Assumed tokens of a problem."""

PRICE = 2.5
"""Assumed price of a GPU hour in US dollars."""

USABLE = 0.9 * H100.memory
"""Assumed bytes that a run may take, by the estimate: the rest is for what that does not count."""

SLOWER = 0.02
"""The share of a step that reading may cost."""

SHALLOW = (2, 3)
"""Layers of the models that are traced. All layers are alike, so each further one adds the same."""

PRECISION = "bf16-true"


@dataclass(frozen=True)
class Case:
    """One model with one adapter.

    Attributes:
        model: Name of the model.
        targets: Name of the adapted modules.
        r: Rank.
        sizes: Sizes of its parameters.
        required: Operations that training requires, without recomputation.
        activations: Peak bytes of the temporary tensors of a micro-batch.
        flops: Operations of a micro-batch, with recomputation.
        seconds: Least time of a micro-batch on one GPU.
        fused_seconds: The same if all operations but products were free.
    """

    model: str
    targets: str
    r: int
    sizes: Sizes
    required: TrainingFlops
    activations: float
    flops: float
    seconds: float
    fused_seconds: float

    @property
    def name(self) -> list[Any]:
        """The first cells of a row."""
        return [self.model, self.targets, self.r]

    @property
    def trained_bytes(self) -> int:
        """Bytes of the adapter's weights."""
        return self.sizes.trained_elements() * self.sizes.itemsize

    def memory(self, gpus: int, stage: int | None) -> Memory:
        """Return the memory of one GPU; the stage is ``None`` without DeepSpeed."""
        if stage is None:
            return without_deepspeed(self.sizes, round(self.activations), gpus)
        return ZeRO(stage, gpus).memory(self.sizes, round(self.activations))

    def stage(self, gpus: int) -> int | None:
        """Return the lowest ZeRO stage of 2 and 3 that fits; ``None``, which is without DeepSpeed, on one GPU.

        Raises:
            DoesNotFit: None of these fits.
        """
        for stage in (None,) if gpus == 1 else (2, 3):
            if self.memory(gpus, stage).total <= USABLE:
                return stage
        raise DoesNotFit

    def speed(self, gpus: int, seconds: float | None = None) -> float:
        """Return the tokens per second of all GPUs, if collectives and products overlap entirely.

        Args:
            gpus: Number of GPUs.
            seconds: Time of a micro-batch; ``None`` takes ``seconds``.
        """
        accumulate = max(1, MICRO_BATCHES // gpus)
        each, once = self.communication(gpus, self.stage(gpus))
        step = accumulate * max(self.seconds if seconds is None else seconds, each) + once
        return gpus * accumulate * TOKENS / step

    def communication(self, gpus: int, stage: int | None) -> tuple[float, float]:
        """Return the least time of the collectives of a micro-batch, and of those of a step beside them."""
        weights = self.sizes.frozen_bytes() + self.trained_bytes
        return communication_seconds(H100, stage, gpus, weights, self.trained_bytes)

    def utilization(self, speed: float, gpus: int) -> float:
        """Return the MFU at ``speed`` tokens per second."""
        pairs = ROWS * LENGTH * (LENGTH + 1) / 2
        return self.required.count(TOKENS, ROWS * (LENGTH - 1), pairs) / TOKENS * speed / (gpus * H100.flops)


class DoesNotFit(ValueError):
    """No ZeRO stage fits the GPUs' memory."""


def build(base: str, targets: str, r: int) -> CausalLM:
    """Return the module of a training run."""
    adapter = CeraConfig(r=r, dropout=0.1, target_modules=TARGETS[targets])
    return CausalLM(base, adapter, gradient_checkpointing=True)


@cache
def case(model: str, targets: str, r: int) -> Case:
    """Return the estimates of one model and adapter."""
    folder = REPOSITORY / "configs" / "models" / MODELS[model]
    skeleton = adapted_skeleton(build(str(folder), targets, r))
    shallow = [costs(folder, layers, targets, r) for layers in SHALLOW]
    further = skeleton.config.num_hidden_layers - SHALLOW[0]
    measured = [first + further * (second - first) for first, second in zip(*shallow, strict=True)]
    sizes = Sizes.from_model(skeleton, torch.bfloat16, torch.bfloat16)
    return Case(model, targets, r, sizes, TrainingFlops.from_model(skeleton), *measured)


def costs(folder: Path, layers: int, targets: str, r: int) -> tuple[float, ...]:
    """Return the last four attributes of a ``Case`` for a model with so many layers."""
    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as base:
        Path(base, "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        batch = trace(build(base, targets, r), PRECISION, ROWS, LENGTH)
    return batch.activations, batch.flops, batch.seconds(H100), batch.seconds(H100, products_only=True)


def cases() -> list[Case]:
    """Return all models and adapters."""
    return [case(model, targets, r) for model in MODELS for targets in TARGETS for r in RANKS]


def markdown(rows: list[list[Any]], headers: list[str]) -> str:
    """Return a table whose cells are written as they are."""
    numbers = [i for i in range(len(headers)) if i > 1]
    return table(rows, headers, style="markdown", verbatim=numbers)


def constants() -> str:
    """Return the table of constants."""
    sheet, system = "NVIDIA's H100 data sheet", "NVIDIA's DGX H100 data sheet"
    rows = [
        ["peak of dense bf16 products", f"{H100.flops / 1e12:.1f} TFLOP/s", f"{sheet}: half of the rate with sparsity"],
        ["memory bandwidth", f"{H100.memory_bandwidth / 1e12:.2f} TB/s", sheet],
        ["NVLink, each direction", f"{H100.node_bandwidth / 1e9:.0f} GB/s", f"{sheet}: half of 900 GB/s"],
        [
            f"InfiniBand, each direction, one adapter for each of {H100.node} GPUs",
            f"{H100.network_bandwidth / 1e9:.0f} GB/s",
            f"{system}: ConnectX-7 at 400 Gb/s",
        ],
        [
            "share of all these rates that is reached",
            f"{H100.attainable:.0%}",
            "**assumed**; for products [Bekman](https://github.com/stas00/ml-engineering/tree/master/compute/accelerator"
            "#maximum-achievable-matmul-flops-comparison-table) measured 80.1% at the best shape",
        ],
        [
            "memory that the estimate may fill",
            f"{USABLE / 2**30:.0f} of {H100.memory / 2**30:.0f} GiB",
            "**assumed**: the rest is for what the estimate does not count",
        ],
        ["a GPU hour", f"${PRICE:.2f}", "**assumed**; the cost is proportional to it"],
    ]
    return table(rows, ["constant", "value", "source"], style="markdown", verbatim=())


def memory_table() -> str:
    """Return the memory of one GPU in GiB."""
    strategies = [(1, None), *((gpus, stage) for gpus in GPUS[1:] for stage in (2, 3))]
    headers = ["Llama-3", "targets", "r", "trained, M"]
    headers += ["1 GPU" if stage is None else f"{gpus}, ZeRO-{stage}" for gpus, stage in strategies]
    rows = []
    for one in cases():
        sizes = [one.memory(*strategy).total for strategy in strategies]
        cells = [f"{size / 2**30:.1f}" if size <= USABLE else f"({size / 2**30:.0f})" for size in sizes]
        rows.append([*one.name, f"{one.sizes.trained_elements() / 1e6:.1f}", *cells])
    return markdown(rows, headers)


def speed_table() -> str:
    """Return speed, utilization and cost."""
    headers = ["Llama-3", "targets", "r", "GFLOP a token", *(f"tokens/s, {gpus}" for gpus in GPUS)]
    headers += ["MFU", "MFU if fused", "$ per 10^9 tokens"]
    rows = []
    for one in cases():
        speeds = []
        for gpus in GPUS:
            try:
                speeds.append(thousands(one.speed(gpus)))
            except DoesNotFit:
                speeds.append("-")
        node = H100.node
        speed, fused = one.speed(node), one.speed(node, one.fused_seconds)
        cost = node * PRICE / 3600 / speed * 1e9
        shares = [f"{one.utilization(value, node):.0%}" for value in (speed, fused)]
        rows.append([*one.name, f"{one.flops / TOKENS / 1e9:.1f}", *speeds, *shares, f"{cost:,.0f}"])
    return markdown(rows, headers)


def thousands(value: float) -> str:
    """Return a number in thousands."""
    return f"{value / 1e3:,.1f}k" if value < 1e5 else f"{value / 1e3:,.0f}k"


def communication_table() -> str:
    """Return the communication of a micro-batch against its time on one GPU."""
    headers = ["Llama-3", "targets", "r", "ZeRO", *(f"ms, {gpus} GPUs" for gpus in GPUS[1:])]
    headers += ["share of compute, 512", "tokens at which both are equal, 512"]
    rows = []
    for model in MODELS:
        for targets, r in (("q, v", 128), ("all linear", 128), ("all linear", 512)):
            one = case(model, targets, r)
            for stage in (2, 3):
                if one.memory(GPUS[-1], stage).total > USABLE:
                    continue
                times = [sum(one.communication(gpus, stage)) for gpus in GPUS[1:]]
                share = times[-1] / one.seconds
                equal = f"{TOKENS * share:,.0f}"
                rows.append([*one.name, str(stage), *(f"{1e3 * t:.1f}" for t in times), f"{share:.1%}", equal])
    return markdown(rows, headers)


@dataclass(frozen=True)
class Reading:
    """A way of reading the stream.

    Attributes:
        name: The way.
        shared: Seconds a token of what all ranks together do once.
        repeated: Seconds a token of what each rank does for the whole stream.
    """

    name: str
    shared: float
    repeated: float

    def limit(self, speed: float, budget: float) -> float:
        """Return the number of GPUs at which reading takes ``budget`` of the time of the steps.

        Args:
            speed: Tokens per second of one GPU.
            budget: Share of the time of the steps.
        """
        return max(0.0, (budget / speed - self.shared) / self.repeated)

    def share(self, speed: float, gpus: int) -> float:
        """Return the time of reading as a share of the time of the steps."""
        return speed * (self.shared + gpus * self.repeated)


def measured() -> dict[str, Any]:
    """Return what scripts/data_reading.py measured."""
    return json.loads((REPOSITORY / "results" / "data_reading" / "measured.json").read_text())


def ways() -> list[Reading]:
    """Return the ways of reading: today's two, and sharded reading, which is a design."""
    costs = measured()
    row, tokens = costs["seconds_of_a_row"], costs["tokens_of_a_row"]
    packing = costs["packing_of_a_row"]
    step = (costs["labels_of_a_step"] + costs["sending_of_a_position"]) / (costs["packs_of_a_step"] * LENGTH)
    encoding = row["reading"] + row["tokenizing"]
    return [
        Reading(
            "streamed, tokenized by each rank", 0, (row["streaming"] + row["tokenizing"] + packing) / tokens + step
        ),
        Reading("`data.tokenize_once`", 0, (row["reading_tokenized"] + packing) / tokens + step),
        Reading("sharded (a design), random access", 2 * encoding / tokens, packing / tokens),
        Reading("sharded (a design), streamed", 2 * encoding / tokens, (row["streaming"] + packing) / tokens),
    ]


def reading_table() -> str:
    """Return from how many GPUs on reading costs more than ``SLOWER`` of a step."""
    bases = [case(model, "q, v", 128) for model in MODELS]
    speeds = [TOKENS / base.seconds for base in bases]
    names = [base.model for base in bases]
    headers = ["reading", "tokens/s of a process, 64 GPUs", *(f"no worker: {name}" for name in names)]
    headers += [*(f"a worker: {name}" for name in names), *(f"512 GPUs, a worker: {name}" for name in names)]
    rows = []
    for way in ways():
        rate = 1 / (way.shared / 64 + way.repeated)
        alone = [whole(way.limit(speed, SLOWER)) for speed in speeds]
        beside = [whole(way.limit(speed, 1 + SLOWER)) for speed in speeds]
        slower = [f"{max(1.0, way.share(speed, GPUS[-1])):.1f} x" for speed in speeds]
        rows.append([way.name, thousands(rate), *alone, *beside, *slower])
    return table(rows, headers, style="markdown", verbatim=range(1, len(headers)))


def whole(gpus: float) -> str:
    """Return the first whole number of GPUs past a limit."""
    return f"{math.floor(gpus) + 1:,}"


def validation_share(gpus: int) -> float:
    """Return the time of validation as a share of that of the steps, if each row fills a pack.

    With a frozen base and checkpointing a forward pass is a third of a micro-batch: the forward pass, its recomputation
    and the gradients of the activations have the same products.
    """
    batches = math.ceil(VALIDATION_ROWS / (ROWS * gpus))
    return batches / 3 / (VALIDATE_EVERY * max(1, MICRO_BATCHES // gpus))


def generation_seconds(one: Case) -> float:
    """Return the least time to generate one batch of answers of the maximum length, on one GPU that holds the model."""
    config = adapted_skeleton(build(str(REPOSITORY / "configs" / "models" / MODELS[one.model]), "q, v", 64)).config
    weights = one.required.frozen + one.required.trained + one.required.head
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cache_size = 2 * 2 * config.num_hidden_layers * width * BATCH * (PROMPT + ANSWER / 2)
    token = max(H100.product_seconds(2 * weights * BATCH), H100.pass_seconds(2 * weights + cache_size))
    return ANSWER * token


def evaluation_table() -> str:
    """Return the hours of training and of evaluation on MATH."""
    one = case("8B", "q, v", 128)
    headers = ["GPUs", "training, h", "validation, share of training", "MATH, h", "MATH, share of training"]
    rows = []
    for gpus in GPUS:
        training = RUN_STEPS * MICRO_BATCHES * TOKENS / one.speed(gpus) / 3600
        math_hours = math.ceil(PROBLEMS * SAMPLES / BATCH / gpus) * generation_seconds(one) / 3600
        share = f"{validation_share(gpus):.1%}"
        rows.append([str(gpus), f"{training:.3g}", share, f"{math_hours:.2g}", f"{math_hours / training:.0%}"])
    return table(rows, headers, style="markdown", verbatim=range(len(headers)))


def page() -> str:
    """Return the page, in Markdown."""
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    return template.render(
        constants=constants(),
        memory=memory_table(),
        speed=speed_table(),
        communication=communication_table(),
        reading=reading_table(),
        evaluation=evaluation_table(),
        **assumed(),
        **estimated(),
        **read(),
    )


def assumed() -> dict[str, Any]:
    """Return the assumptions and settings that the text names, as they are written."""
    return {
        "rows": ROWS,
        "length": f"{LENGTH:,}",
        "micro_batches": MICRO_BATCHES,
        "step_tokens": f"{MICRO_BATCHES * TOKENS:,}",
        "most_step_tokens": f"{GPUS[-1] * TOKENS:,}",
        "most_gpus": GPUS[-1],
        "node": H100.node,
        "memory_gib": f"{H100.memory / 2**30:.0f}",
        "usable_gib": f"{USABLE / 2**30:.0f}",
        "gathers": GATHERS,
        "slower": f"{SLOWER:.0%}",
        "run_tokens_in_millions": f"{RUN_STEPS * MICRO_BATCHES * TOKENS / 1e6:,.0f}",
        "run_steps": f"{RUN_STEPS:,}",
        "validate_every": VALIDATE_EVERY,
        "validation_rows": f"{VALIDATION_ROWS:,}",
        "problems": f"{PROBLEMS:,}",
        "samples": SAMPLES,
        "batch": BATCH,
        "answer": f"{ANSWER:,}",
        "prompt": PROMPT,
    }


def estimated() -> dict[str, str]:
    """Return the estimates that the text names, as they are written."""
    small, large, wide = case("8B", "q, v", 128), case("70B", "q, v", 128), case("8B", "all linear", 128)
    skeleton = adapted_skeleton(build(str(REPOSITORY / "configs" / "models" / MODELS["70B"]), "q, v", 128))
    quantized = Sizes.from_model(skeleton, torch.bfloat16, torch.bfloat16, "nf4")
    nf4 = without_deepspeed(quantized, round(large.activations) + quantized.dequantized)
    return {
        "nf4_gib": f"{nf4.total / 2**30:.1f}",
        "large_gib": f"{large.sizes.frozen_bytes() / 2**30:.0f}",
        "share_of_passes": f"{1 - small.fused_seconds / small.seconds:.0%}",
        "more_operations": f"{wide.flops / small.flops - 1:.0%}",
        "more_time": f"{wide.seconds / small.seconds - 1:.0%}",
    }


def read() -> dict[str, Any]:
    """Return what was measured of reading, as it is written."""
    costs = measured()
    row = {**costs["seconds_of_a_row"], "packing": costs["packing_of_a_row"]}
    step = {"labels": costs["labels_of_a_step"], "position": costs["sending_of_a_position"]}
    bases = [case(model, "q, v", 128) for model in MODELS]
    return {
        "measured": costs,
        "packs": f"{costs['packs_of_a_step']:,}",
        "microseconds": {name: f"{1e6 * seconds:.0f} µs" for name, seconds in row.items()},
        "milliseconds": {name: f"{1e3 * seconds:.0f} ms" for name, seconds in step.items()},
        "position_size": f"{costs['bytes_of_a_position'] / 1e6:.0f} MB",
        "first": [whole(ways()[0].limit(TOKENS / one.seconds, 1 + SLOWER)) for one in bases],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(page(), end="")
