"""A tiny model, its adapters, and one engine in this process that has slots for all of them."""

import os
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine of these tests is in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from engines import Engine
from material import NAMES, make_adapter, make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny Llama."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> directory of each adapter of ``material``."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(base, root / name, name) for name in NAMES}


@pytest.fixture(scope="session")
def engine(base: Path) -> Engine:
    """vLLM with 16 slots, the number of adapters."""
    return Engine(base, max_loras=len(NAMES), max_lora_rank=16)
