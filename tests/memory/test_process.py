"""The memory of a process, as runs and benchmarks report it."""

import subprocess
import sys

import torch
from conftest import REPOSITORY

from benchmarks import process as benchmarks_process
from cera.callbacks import throughput
from cera.memory import process

MIB = 2**20
CHILD = """
import json, resource
from benchmarks.process import peak_bytes
print(json.dumps([peak_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    held = torch.ones(300 * MIB, dtype=torch.uint8)
    printed = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    peak, maximum_of_getrusage = torch.tensor([int(word) for word in printed.strip("[]\n").split(",")])
    assert MIB < peak < 200 * MIB
    assert maximum_of_getrusage > len(held)


def test_the_peak_stays_and_can_begin_anew():
    process.reset_peak()
    before = process.resident_bytes()
    held = torch.ones(200 * MIB, dtype=torch.uint8)
    del held
    assert process.peak_bytes() - before > 180 * MIB
    process.reset_peak()
    assert process.peak_bytes() - before < 100 * MIB


def test_runs_and_benchmarks_use_one_function():
    assert throughput.peak_bytes is process.peak_bytes
    assert benchmarks_process.peak_bytes.__code__.co_filename == process.peak_bytes.__code__.co_filename
