"""Measure CeRA against LoRA in vLLM, in turns on one machine, and write results/serving/measured.json.

    serving/.venv/bin/python serving/measure.py DIRECTORY_OF_SMOLLM2            # about ten minutes of an idle machine
    serving/.venv/bin/python serving/measure.py DIRECTORY_OF_SMOLLM2 --quick --out /tmp/quick.json

Each part has a process of its own: the products of one layer, an engine with adapters of r = 64 or 128, and a server.
Parts that the file has already are left as they are. Adapters are random; cera is not needed. Times are seconds of the
processor, which other work on the machine changes little, on one thread; memory is in bytes.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

PARTS = ("layer", "engine-64", "engine-128", "throughput", "server")
COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of adapters in one batch."""
ROWS, PROMPT, TOKENS = 64, 16, 16
"""Batch of the throughput: rows, tokens of each prompt, and tokens generated for each."""
ROUNDS = 3
SETTINGS = {
    "OMP_NUM_THREADS": "1",  # threads that wait for each other measure what else runs
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment of each part; what is set already stays."""
MEASURED = Path(__file__).parents[1] / "results" / "serving" / "measured.json"


def main() -> None:
    """Run all parts, or some of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("base", type=Path, help="directory of the base model")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--print", choices=PARTS, help="measure one part here, and print its JSON")
    options = parser.parse_args()
    rounds = 2 if options.quick else ROUNDS
    if options.print:
        print("\n" + json.dumps({**run_part(options.print, options.base, rounds), "threads": threads()}))
        return
    measured: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        if part in measured:
            continue
        command = [sys.executable, __file__, str(options.base), "--print", part]
        command += ["--quick"] if options.quick else []
        done = subprocess.run(command, env={**SETTINGS, **os.environ}, stdout=subprocess.PIPE, check=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        load = [round(value, 1) for value in os.getloadavg()]
        measured[part] = {"rounds": rounds, "load_average": load, "environment": environment(), **found}
        print(f"{part}: {json.dumps(found.get('ratios', found))}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(measured, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch
    import vllm

    model = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "vllm": vllm.__version__,
        "revision": revision.stdout.strip(),
    }


def threads() -> int:
    """Return the number of threads of a product."""
    import torch

    return torch.get_num_threads()


def run_part(part: str, base: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one of ``PARTS``."""
    if part == "layer":
        return layers(rounds)
    if part == "server":
        return server(base)
    if part == "throughput":
        return throughput(base, rounds)
    return engine(base, int(part.partition("-")[2]), rounds)


def in_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int, least: float = 0.0) -> dict[str, list[float]]:
    """Return the processor's seconds of a call of each contender in each round, of ``least`` seconds or more."""
    for contender in contenders.values():
        contender()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 else reversed(names):
            calls, begun = 0, time.process_time()
            while not calls or time.process_time() - begun < least:
                contenders[name]()
                calls += 1
            seconds[name].append((time.process_time() - begun) / calls)
    return seconds


def ratios(seconds: dict[str, list[float]], pairs: dict[str, tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Return the median, least and largest ratio over the rounds of each pair of contenders."""
    found = {}
    for name, (above, below) in pairs.items():
        by_round = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        found[name] = {"median": statistics.median(by_round), "min": min(by_round), "max": max(by_round)}
    return found


# One layer


def layers(rounds: int) -> dict[str, Any]:
    """The update of a packed layer of queries, keys and values: CeRA, LoRA, and LoRA by vLLM's own wrapper."""
    seconds, found, operations = {}, {}, {}
    for width, out in ((576, (576, 192, 192)), (4096, (4096, 1024, 1024))):
        for r in (64, 128):
            for what, tokens, adapters in (("prefill", 256, 1), ("decode", 32, 16)):
                name = f"{what}, {tokens} tokens, adapters: {adapters}, d={width}, r={r}"
                seconds[name], operations[name] = layer(width, out, r, tokens, adapters, rounds)
                pairs = {"CeRA / LoRA": ("CeRA", "LoRA"), "LoRA / vLLM's LoRA": ("LoRA", "vLLM's LoRA")}
                found[name] = ratios(seconds[name], pairs)
    return {"ratios": found, "seconds": seconds, "operations": operations}


def layer(
    width: int, out: tuple[int, ...], r: int, tokens: int, adapters: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Return the seconds of one update, and of its operations, for tokens that use the adapters in turn."""
    import torch
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from cera_vllm.activations import CODES, IDENTITY
    from cera_vllm.punica import LayerWrapper, SegmentedWrapper

    torch.manual_seed(0)
    up = tuple(torch.randn(adapters, 1, r, width, dtype=torch.bfloat16) * 0.02 for _ in out)
    down = tuple(torch.randn(adapters, 1, size, r, dtype=torch.bfloat16) * 0.02 for size in out)
    x, y = torch.randn(tokens, width, dtype=torch.bfloat16), torch.zeros(tokens, sum(out), dtype=torch.bfloat16)
    ids = list(range(1, adapters + 1))
    of_tokens = tuple(ids[token % adapters] for token in range(tokens))

    def wrapper(kind: type, code: int) -> Any:
        shared = kind(tokens, tokens, torch.device("cpu"), lora_config=types.SimpleNamespace(max_loras=adapters))
        if kind is SegmentedWrapper:
            for slot in range(adapters):
                shared.set_slot(slot, code)
        shared.update_metadata(LoRAMapping(of_tokens, of_tokens, is_prefill=True), ids, adapters + 1, 32000)
        return LayerWrapper(shared, len(out), adapters) if kind is SegmentedWrapper else shared

    kinds = {
        "CeRA": wrapper(SegmentedWrapper, CODES["silu"]),
        "LoRA": wrapper(SegmentedWrapper, IDENTITY),
        "vLLM's LoRA": wrapper(PunicaWrapperCPU, IDENTITY),
    }
    with torch.inference_mode():
        calls = {name: partial(kind.add_lora_linear, y, x, up, down, 1.0, out) for name, kind in kinds.items()}
        seconds = in_turns(calls, rounds, least=0.1)
        return seconds, {name: profile(calls[name]) for name in ("CeRA", "LoRA")}


def profile(call: Callable[[], Any], calls: int = 50) -> dict[str, float]:
    """Return the seconds of each of PyTorch's operations in one call, without those that they call.

    By the median of each operation, since the profiler counts what the thread waits, too.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            call()
    taken: dict[str, list[float]] = {}
    for event in found.events():
        taken.setdefault(event.name, []).append(event.self_cpu_time_total * 1e-6)
    return {name: statistics.median(times) * len(times) / calls for name, times in taken.items()}


# An engine


def make_adapter(base: Path, folder: Path, method: str, r: int, seed: int) -> str:
    """Save a random adapter on queries and values, as PEFT writes it, and return its directory."""
    import torch
    from safetensors.torch import save_file

    model = json.loads((base / "config.json").read_text())
    width, head = model["hidden_size"], model["hidden_size"] // model["num_attention_heads"]
    outs = {"q_proj": width, "v_proj": head * model["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(seed)
    up, down = ("cera_up", "cera_down") if method == "CERA" else ("lora_A", "lora_B")
    tensors = {}
    for number in range(model["num_hidden_layers"]):
        for name, out in outs.items():
            prefix = f"base_model.model.model.layers.{number}.self_attn.{name}"
            tensors[f"{prefix}.{up}.weight"] = torch.randn(r, width, generator=generator) * 0.02
            tensors[f"{prefix}.{down}.weight"] = torch.randn(out, r, generator=generator) * 0.02
    settings: dict[str, Any] = {"peft_type": method, "task_type": "CAUSAL_LM", "r": r, "target_modules": list(outs)}
    settings |= {"activation": "silu", "scaling": 1.0} if method == "CERA" else {"lora_alpha": r}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


class Engine:
    """vLLM's engine in this process, with adapters of both methods in slots of their own."""

    def __init__(self, base: Path, folder: Path, r: int, adapters: int) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.llm = LLM(
            str(base), dtype="bfloat16", max_model_len=512, max_num_seqs=ROWS, enforce_eager=True,
            enable_prefix_caching=False, enable_lora=True, max_loras=2 * adapters, max_lora_rank=r,
        )  # fmt: skip
        self.requests: dict[str, list[LoRARequest]] = {"CERA": [], "LORA": []}
        for method, requests in self.requests.items():
            for seed in range(adapters):
                name = f"{method}-{seed}"
                path = make_adapter(base, folder / name, method, r, seed)
                requests.append(LoRARequest(name, 1 + seed + adapters * (method == "LORA"), path))
            self.generate(method, adapters, adapters, prompt=1, tokens=1)  # they take slots side by side

    def generate(self, method: str | None, rows: int, adapters: int, prompt: int, tokens: int) -> None:
        """Answer ``rows`` prompts that use ``adapters`` of a method in turn, or the base."""
        from vllm import SamplingParams

        requests = None if method is None else [self.requests[method][row % adapters] for row in range(rows)]
        prompts = [
            {"prompt_token_ids": [(7 * row + place) % 1000 + 10 for place in range(prompt)]} for row in range(rows)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)


def engine(base: Path, r: int, rounds: int) -> dict[str, Any]:
    """Prefill of 8 prompts of 256 tokens, and decoding of 32 rows, over 16 adapters: the base, CeRA and LoRA."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Engine(base, Path(folder), r, adapters=16)
        for what, rows, prompt, tokens in (("prefill", 8, 256, 1), ("decode", 32, 2, 32)):
            contenders = {
                name: partial(made.generate, method, rows, 16, prompt, tokens)
                for name, method in (("base", None), ("CeRA", "CERA"), ("LoRA", "LORA"))
            }
            seconds[what] = in_turns(contenders, rounds)
    pairs = {"CeRA / LoRA": ("CeRA", "LoRA"), "CeRA / base": ("CeRA", "base"), "LoRA / base": ("LoRA", "base")}
    return {"ratios": {what: ratios(found, pairs) for what, found in seconds.items()}, "seconds": seconds}


def throughput(base: Path, rounds: int) -> dict[str, Any]:
    """Generated tokens per second of 64 rows, by the number of adapters that they use, r=64."""
    with tempfile.TemporaryDirectory() as folder:
        made = Engine(base, Path(folder), 64, adapters=max(COUNTS))
        contenders = {"base": partial(made.generate, None, ROWS, 1, PROMPT, TOKENS)}
        for count in COUNTS:
            for name, method in (("CeRA", "CERA"), ("LoRA", "LORA")):
                contenders[f"{name}, {count}"] = partial(made.generate, method, ROWS, count, PROMPT, TOKENS)
        seconds = in_turns(contenders, max(2, rounds - 1))
    generated = ROWS * TOKENS
    return {
        "tokens_per_second": {name: generated / statistics.median(found) for name, found in seconds.items()},
        "ratios": ratios(seconds, {f"{name} / base": (name, "base") for name in seconds if name != "base"}),
        "seconds": seconds,
    }


# A server


def server(base: Path) -> dict[str, Any]:
    """Seconds to the first answer of a server, and the memory of its processes, with 16 adapters and with none."""
    return {f"{count} adapters": server_with(base, count) for count in (0, 16)}


def server_with(base: Path, count: int) -> dict[str, Any]:
    """Return the seconds until a server with ``count`` adapters is up, and its memory then and after their answers."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        adapters = [make_adapter(base, Path(folder) / f"a{i}", "CERA", 64, i) for i in range(count)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "cera_vllm", str(base), "--until-eof", f"--port={port}", "--dtype=bfloat16"]
        command += [f"--adapter=a{i}={path}" for i, path in enumerate(adapters)]
        command += ["--max-model-len=512", "--served-model-name=base"]
        begun = time.perf_counter()
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            while not answers(f"http://127.0.0.1:{port}/health", None):
                if process.poll() is not None:
                    sys.exit((Path(folder) / "log").read_text()[-3000:])
                time.sleep(0.1)
            up = time.perf_counter() - begun
            idle = memory(psutil.Process(process.pid))
            for name in ("base", *(f"a{index}" for index in range(count))):
                body = {"model": name, "prompt": [5] * 100, "max_tokens": 16}
                if not answers(f"http://127.0.0.1:{port}/v1/completions", body):
                    sys.exit((Path(folder) / "log").read_text()[-3000:])
            return {
                "start": up,
                "memory": {"idle": idle, "after an answer of each": memory(psutil.Process(process.pid))},
            }
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str, body: Any) -> bool:
    """Return whether a server answers."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300):
            return True
    except OSError:
        return False


def memory(process: Any) -> dict[str, int]:
    """Return the resident memory of a process and its children, by name."""
    sizes: dict[str, int] = {}
    for one in (process, *process.children(recursive=True)):
        sizes[one.name()] = sizes.get(one.name(), 0) + one.memory_info().rss
    return sizes


if __name__ == "__main__":
    main()
