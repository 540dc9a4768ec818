"""A bounded soak: loads, unloads, swaps in place and cancelled requests, with each answer compared.

`CERA_SOAK_ROUNDS` sets its length, 18 or more: in the first third memory still grows, because caches fill.
"""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from material import CONTROLS, NEARLY_LINEAR, differs, make_adapter, prompts, reference
from servers import Refused, Server

ROUNDS = int(os.environ.get("CERA_SOAK_ROUNDS", "18"))
KINDS = ("silu", "tanh", "mix", "ranks", "all-linear", "lora")
SWAPPED = 4
"""Number of contents that take turns under the name ``swapped``."""
GROWTH = 16 * 2**20
"""Bytes that the processes together may grow by after the first third of the rounds."""


def memory(server: Server) -> int:
    """Return the resident memory of all processes of the server in bytes."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))


def cancel(server: Server, name: str, prompt: list[int]) -> None:
    """Ask for a long answer, read its beginning, and hang up."""
    answer = server.stream(name, prompt, 150)
    next(answer, None)
    answer.close()


def test_soak(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    root, rng = tmp_path / "root", random.Random(0)
    models = {name: reference(base, adapters[name]) for name in KINDS}
    versions = [make_adapter(base, root / f"version-{seed}", "gelu", seed) for seed in range(SWAPPED)]
    lines = {
        name: [reference(base, adapters[name], control) for control in CONTROLS.values()]
        for name in KINDS
        if name not in NEARLY_LINEAR
    }
    swapped = [reference(base, version) for version in versions]
    for name in KINDS:
        shutil.copytree(adapters[name], root / name)
    asked = prompts(40, seed=8)
    options = ["--adapter-root", str(root), "--max-loras", "2", "--max-cpu-loras", "3", "--max-lora-rank", "16"]
    options += ["--num-gpu-blocks-override", "48"]  # a cache that is full soon: memory counts when it is first used
    sizes, compared = [], 0
    with Server(base, tmp_path / "log", *options) as server, ThreadPoolExecutor(6) as pool:
        server.load("swapped", versions[0].name)
        for name in KINDS[1:]:
            server.load(name, name)
        away = KINDS[0]
        for number in range(ROUNDS):
            server.load(away, away)
            away = rng.choice(KINDS)
            rows: list[tuple[str, list[int]]] = [
                (rng.choice([*KINDS, "swapped", "swapped"]), rng.choice(asked)) for _ in range(12)
            ]
            waiting = [pool.submit(ask, server, *row) for row in rows]
            for _ in range(2):
                pool.submit(cancel, server, rng.choice(KINDS), rng.choice(asked))
            server.load("swapped", versions[(number + 1) % SWAPPED].name, load_inplace=True)
            server.unload(away)
            for (name, prompt), future in zip(rows, waiting, strict=True):
                answer = future.result()
                if answer is None:
                    assert name == away
                    continue
                now = [swapped[number % SWAPPED], swapped[(number + 1) % SWAPPED]]  # before and after the swap
                expected = now if name == "swapped" else [models[name]]
                assert None in [differs(answer, prompt, model) for model in expected], (number, name)
                assert None not in [differs(answer, prompt, line) for line in lines.get(name, [])], (number, name)
                compared += 1
            sizes.append(memory(server))
    assert compared > 8 * ROUNDS
    assert max(sizes[2 * ROUNDS // 3 :]) - max(sizes[: ROUNDS // 3]) < GROWTH, [size >> 20 for size in sizes]
    print(f"{compared} answers in {ROUNDS} rounds; MiB of all processes: {[size >> 20 for size in sizes]}")


def ask(server: Server, name: str, prompt: list[int]) -> Any:
    """Return an answer, or nothing if the adapter was unloaded before."""
    try:
        return server.answer(name, prompt)
    except Refused as refused:
        if refused.status in (400, 404):
            return None
        raise
