"""The plugin itself: light, harmless, and silent about nothing in a version that it was not tested with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cera_vllm.plugin import TESTED, is_tested

UNTESTED = """
import sys
import vllm
vllm.__version__ = "0.99.0"
from engines import Engine
from material import differs, prompts, reference
from pathlib import Path

from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import WorkerLoRAManager

base, lora, cera = map(Path, sys.argv[1:])
engine = Engine(base, max_loras=2, max_lora_rank=16)
(prompt,) = prompts(1)
for adapter in (None, lora):
    (answer,) = engine.answers([prompt], [adapter])
    assert differs(answer, prompt, reference(base, adapter)) is None
runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
wrappers = runner.lora_manager._adapter_manager.punica_wrapper_mapping.values()
assert [type(wrapper) for wrapper in wrappers] == [PunicaWrapperCPU]
try:
    engine.llm.llm_engine.add_lora(engine.request(cera))
except ValueError as error:
    print(f"refused: {error}")
"""

LIGHT = """
import sys
import cera_vllm
print(sorted(sys.modules.keys() & {"torch", "vllm", "transformers", "safetensors"}))
"""


def run(code: str, *arguments: str) -> str:
    """Return what a Python process of its own prints."""
    folder = str(Path(__file__).parent)
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_found_by_vllm_and_light_to_import() -> None:
    from importlib.metadata import entry_points

    (plugin,) = [plugin for plugin in entry_points(group="vllm.general_plugins") if plugin.name == "cera"]
    assert plugin.value == "cera_vllm:register"
    assert run(LIGHT).strip() == "[]"


def test_an_untested_version_is_left_as_it_is(base: Path, adapters: dict[str, Path]) -> None:
    """LoRA goes on through vLLM's own wrapper, and a CeRA is refused with both versions."""
    printed = run(UNTESTED, str(base), str(adapters["lora"]), str(adapters["silu"]))
    refusal = next(line for line in printed.splitlines() if line.startswith("refused: "))
    assert "cera-vllm 0.1.0 does not serve it in vLLM 0.99.0: it was tested with vLLM 0.32" in refusal


def test_versions() -> None:
    import vllm

    assert is_tested(vllm.__version__)
    assert is_tested("0.32.1+cpu")
    assert not is_tested("0.3.2")
    assert not is_tested("0.33.0")
    assert TESTED == ("0.32",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "MODEL"),
        ("--adapter a=b model", "MODEL comes first"),
        ("model --adapter a", "--adapter must be NAME=DIR, got 'a'"),
        ("model --adapter a=x --adapter a=y", "names 'a' twice"),
        ("model --adapter-root nowhere", "--adapter-root must be a directory, got nowhere"),
        ("model --lora-modules a=b", "use --adapter NAME=DIR"),
        ("model --trust-remote-code", "use a model whose code is in transformers or vLLM"),
        ("model --adapter a@b=x", "a name has letters, digits"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(line: str, message: str) -> None:
    command = [sys.executable, "-m", "cera_vllm", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_defaults_have_room_for_the_adapters(adapters: dict[str, Path]) -> None:
    from cera_vllm.server import defaults, parse

    given = [f"--adapter={name}={adapters[name]}" for name in ("silu", "ranks", "lora")]
    assert defaults(*parse(["model", *given])) == [
        "--host", "127.0.0.1", "--max-loras", "3", "--max-lora-rank", "16",
    ]  # fmt: skip
    options, others = parse(["model", "--adapter-root", "/", "--host=::", "--max_loras", "5"])
    assert defaults(options, others) == ["--max-lora-rank", "64"]
