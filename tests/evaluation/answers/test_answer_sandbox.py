import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cera.evaluation import answers
from cera.evaluation.answers import correctness, is_correct
from cera.evaluation.answers import sandbox as sandbox_module
from cera.evaluation.answers.sandbox import ATTEMPTS, Sandbox, SandboxError


@pytest.fixture
def sandbox(tmp_path):
    """A sandbox for a function that misbehaves in the way that its first argument names."""
    file = tmp_path / "misbehaving.py"
    file.write_text(
        "import os, signal, sys, time\n"
        "def warm_up(): pass\n"
        "def check(a, b):\n"
        "    print('true')\n"
        "    if a == 'loop':\n"
        "        while True: pass\n"
        "    if a == 'c': 7 ** 10 ** 9\n"
        "    if a == 'memory': bytearray(1 << 40)\n"
        "    if a == 'fill': [bytearray(1 << 20) for _ in range(1 << 20)]\n"
        "    if a == 'recursion': return check(a, b)\n"
        "    if a == 'crash': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if a == 'abort': os.abort()\n"
        "    if a == 'exit': os._exit(0 if b else 7)\n"
        "    if a == 'modules': return b in sys.modules\n"
        "    if a.startswith('SIG'):\n"  # SIGNAL TIMES: sends itself that signal in the first calls
        "        name, times = a.split()\n"
        "        with open(b, 'a+') as calls:\n"
        "            print(file=calls, flush=True)\n"
        "            calls.seek(0)\n"
        "            if len(calls.readlines()) <= int(times): os.kill(os.getpid(), getattr(signal, name))\n"
        "        return True\n"
        "    return a == b\n"
    )
    sandbox = Sandbox(file, wall_seconds=1.5)
    yield sandbox
    sandbox.close()


@pytest.fixture
def patient(sandbox):
    """The same, which waits longer for its process: the limit is to be its processor time, on a busy machine, too."""
    sandbox.wall_seconds = 60.0
    return sandbox


@pytest.mark.parametrize("misbehaviour", ["loop", "c", "memory", "fill", "recursion"])
def test_a_function_that_misbehaves_is_false_and_the_next_call_is_answered(patient, misbehaviour):
    for _ in range(2):
        assert not patient.check(misbehaviour, "")
        assert patient.check("é\n\u2028", "é\n\u2028")
        assert not patient.check("1", "2")


@pytest.mark.parametrize(("misbehaviour", "end"), [("crash", "by SIGSEGV"), ("abort", "by SIGABRT"), ("exit", "with")])
def test_a_function_that_crashes_its_process_each_time_is_an_error_and_no_verdict(sandbox, misbehaviour, end):
    for _ in range(2):
        message = f"in {ATTEMPTS} attempts .*crashed {end}.* crashes for '{misbehaviour}'"
        with pytest.raises(SandboxError, match=message):
            sandbox.check(misbehaviour, "")
        assert sandbox.check("1", "1")
        assert not sandbox.check("1", "2")


def test_a_crash_that_does_not_happen_again_makes_no_verdict_and_no_error(sandbox, tmp_path):
    assert sandbox.check("SIGSEGV 1", str(tmp_path / "calls"))


def test_the_process_imports_neither_torch_nor_the_packages_around_the_answers(sandbox):
    assert sandbox.check("modules", "os")
    assert not sandbox.check("modules", "torch")
    assert not sandbox.check("modules", "cera")
    is_correct("x+1", "1+x")
    keeper = correctness._sandbox._keeper
    assert keeper is not None
    assert "libtorch" not in Path(f"/proc/{keeper.pid}/maps").read_text()


WITHOUT_TORCH = """
import importlib.util, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "cera"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, NoTorch())
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("answers", f"{folder}/__init__.py", submodule_search_locations=[folder])
answers = sys.modules["answers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(answers)
assert answers.judge(r"So it is \\boxed{(x+1)^2}.", "x^2+2x+1").correct
assert "torch" not in sys.modules
"""


def test_answers_can_be_imported_and_used_without_torch():
    [folder] = answers.__path__
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-P", "-c", WITHOUT_TORCH, folder], check=True, env=environment)


def test_the_packages_around_the_answers_import_nothing_of_the_evaluation_for_them():
    code = (
        "import sys, cera\n"
        "before = set(sys.modules)\n"
        "import cera.evaluation.answers\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "own = {name for name in sys.modules if name.startswith('cera.evaluation')}\n"
        "assert all(name == 'cera.evaluation' or name.startswith('cera.evaluation.answers') for name in own), own\n"
        "assert not added & {'torch', 'transformers', 'peft', 'lightning', 'datasets'}, added\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def worker_of(sandbox):
    keeper = sandbox._keeper.pid
    [worker] = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(worker)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("process", ["keeper", "worker"])
def test_a_process_that_is_ended_or_stopped_from_outside_makes_no_verdict(sandbox, process, number):
    assert sandbox.check("a", "a")
    os.kill(sandbox._keeper.pid if process == "keeper" else worker_of(sandbox), number)
    for right in (True, False, True, False):  # nor does an answer go to another call
        assert sandbox.check("a", "a" if right else "b") == right


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "SIGTERM"])
def test_a_call_whose_process_is_ended_from_outside_is_repeated_and_then_an_error(sandbox, name, tmp_path):
    calls = tmp_path / "calls"
    assert sandbox.check(f"{name} 1", str(calls))
    calls.unlink()
    if name != "SIGSTOP":  # each attempt takes the whole time
        with pytest.raises(SandboxError, match=f"in {ATTEMPTS} attempts .*ended by {name}"):
            sandbox.check(f"{name} 100", str(calls))
    assert sandbox.check("a", "a")


def test_a_stopped_worker_ends_with_the_process_that_started_it(sandbox, tmp_path):
    code = (
        "import os, pathlib, runpy, signal, sys, threading\n"
        "sandbox = runpy.run_path(sys.argv[3])['Sandbox'](pathlib.Path(sys.argv[1]), wall_seconds=1.5)\n"
        "assert sandbox.check('a', 'a')\n"
        "threading.Thread(target=sandbox.check, args=('SIGSTOP 9', sys.argv[2]), daemon=True).start()\n"
        "while not os.path.exists(sys.argv[2]): pass\n"
        "print(sandbox._keeper.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [sys.executable, "-c", code, str(sandbox.file), str(tmp_path / "calls"), sandbox_module.__file__]
    group = int(subprocess.run(arguments, stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("the keeper or its worker is still there")


def test_a_process_that_cannot_start_is_an_error(tmp_path):
    with pytest.raises(SandboxError, match=r"nothing\.py cannot be started"):
        Sandbox(tmp_path / "nothing.py").check("a", "b")


def test_threads_take_turns_and_a_forked_process_has_its_own():
    verdicts = []
    threads = [
        threading.Thread(
            target=lambda i=i: verdicts.append((is_correct(f"x+{i}", f"{i}+x"), is_correct(f"x+{i}", "x")))
        )
        for i in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [(True, False)] * 8
    child = os.fork()
    if child == 0:
        os._exit(0 if is_correct("(x+1)^2", "x^2+2x+1") and not is_correct("x", "2x") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert is_correct("(x+1)^2", "x^2+2x+1")
