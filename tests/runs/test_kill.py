"""SIGKILL at any moment costs no file of a run; see ``kill_and_resume.py``."""

import re
import sys

import pytest
from command_line import TESTS, run


def kill_and_resume(*options: str, timeout: float) -> str:
    return run([sys.executable, str(TESTS / "kill_and_resume.py"), *options], timeout=timeout)


def test_a_run_that_is_killed_a_few_times():
    assert re.search(r"^2 kills of \d runs, 0 differences$", kill_and_resume("--kills=2", timeout=300), re.M)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_at_random_moments(request):
    kills = request.config.getoption("--kills")
    printed = kill_and_resume(f"--kills={kills}", timeout=3600)
    assert re.search(rf"^{kills} kills of \d+ runs, 0 differences$", printed, re.M)
