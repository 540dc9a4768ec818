"""The console script ``cera``: its commands, what they import, and what it says of a missing extra."""

import importlib
import inspect
import os
import subprocess
import sys
import tomllib

import pytest
from command_line import environment
from conftest import REPOSITORY

from cera import __version__
from cera.cli.main import COMMANDS, Command, main
from cera.extras import EXTRAS, MissingExtra, extra_of, require


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_main(name) -> None:
    command = COMMANDS[name]
    entry = importlib.import_module(command.module).main
    assert list(inspect.signature(entry).parameters) == ["arguments"]
    assert command.extra in EXTRAS


def test_help_lists_the_commands(capsys) -> None:
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed and command.help in printed for name, command in COMMANDS.items())


def test_version(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"cera {__version__}\n"


def test_an_unknown_command_is_a_mistake(capsys) -> None:
    assert main(["estimat"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'estimat'. Did you mean estimate?\n"
    assert main(["x"]) == 2
    assert "There are train, pretrain, evaluate, compare" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("train", "lm-eval")])
def test_every_command_explains_itself(name, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: cera {name}" in capsys.readouterr().out


NOT_IMPORTED = {
    "": ("lightning", "datasets", "jsonargparse", "matplotlib", "deepspeed"),
    "compare": ("jsonargparse", "deepspeed"),
}


@pytest.mark.parametrize("name", NOT_IMPORTED, ids=lambda name: name or "cera")
def test_a_command_imports_only_what_it_needs(name) -> None:
    script = (
        "import sys; from cera.cli.main import main\n"
        f"try: main({[name, '--help'] if name else ['--help']})\n"
        "except SystemExit: pass\n"
        f"print([m for m in {NOT_IMPORTED[name]} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_ctrl_c_during_imports_is_one_line_whatever_a_library_makes_of_it(tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "interrupted_import.py").write_text(
        "import os, signal\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt as error: raise RuntimeError('could not import') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "interrupted", Command("interrupted_import", "train", "is interrupted"))
    child = os.fork()
    if child == 0:
        try:
            main(["interrupted"])
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert capfd.readouterr().err == "\nSIGINT: stopped.\n"


# Missing extras


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("evaluate", "math_verify", "eval"), ("train", "lightning", "train")]
)
def test_a_command_without_its_extra_says_so_in_one_line(name, package, extra, monkeypatch, capsys) -> None:
    def without(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

    monkeypatch.setattr(importlib, "import_module", without)
    assert main([name]) == 2
    assert capsys.readouterr().err == f"error: `cera {name}` needs {package}: pip install 'cera[{extra}]'\n"


def test_any_other_missing_module_is_an_error_of_its_own(monkeypatch) -> None:
    def without(module: str) -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match="mine"):
        main(["train"])


def test_a_room_without_its_extra_says_so(monkeypatch) -> None:
    monkeypatch.setitem(EXTRAS, "train", ("no_such_package",))
    with pytest.raises(MissingExtra, match=r"^cera\.callbacks needs no_such_package: pip install 'cera\[train\]'$"):
        require("cera.callbacks", "train")


def test_the_extra_of_a_package() -> None:
    assert extra_of("lightning") == "train"
    assert extra_of("scipy", "studies") == "studies"
    assert extra_of("scipy", "deepspeed") in ("train", "eval", "studies")
    assert extra_of("mine") is None
    assert extra_of(None) is None


def test_the_extras_are_those_of_pyproject() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {"pyyaml": "yaml"}
    for extra, packages in EXTRAS.items():
        direct = {name_of(requirement) for requirement in listed[extra]} - {"cera"}
        names = {imported.get(name, name.replace("-", "_")) for name in direct}
        assert names <= set(packages)
        if not any(requirement.startswith("cera[") for requirement in listed[extra]):
            assert names == set(packages)


def name_of(requirement: str) -> str:
    return requirement.split(">")[0].split("[")[0]
