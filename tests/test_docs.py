"""The README and the documentation: commands, links, class paths and the code of the recipes."""

import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from transformers import AutoModelForCausalLM

import cera
import cera.cli.main
import cera.spectral.measures
from cera.cli.shipped import configuration_file
from cera.data import ChatData
from cera.training import CausalLM

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OF_A_RUN = {"config", "name", "runs", "checkpoint_every", "answer_tokens", "evaluation", "ckpt_path", "print_config"}
SETTINGS = {"model": CausalLM, "data": ChatData, "trainer": lightning.Trainer}
USERS_OWN = {"eval_capitals.yaml"}
"""Files that a page tells its reader to write."""


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the fenced code blocks of a page in a language; commands are in blocks without one."""
    for block_language, code in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if block_language == language:
            yield code


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of the pages that is ours, with the page's name."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words[:1] == ["cera"]:
                    own, *runs = (list(g) for is_separator, g in groupby(words[1:], "---".__eq__) if not is_separator)
                    yield page.name, own
                    yield from ((page.name, ["train", *run]) for run in runs)  # of `cera train-together`
                if words[:2] == ["python", "train.py"]:
                    yield page.name, ["train", *words[2:]]


COMMANDS = list(commands())


@functools.cache
def help_of(command: str) -> str:
    """What ``cera COMMAND --help`` prints."""
    module = importlib.import_module(cera.cli.main.COMMANDS[command].module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main(["--help"])
    return printed.getvalue()


def options(arguments: list[str]) -> Iterator[str]:
    """Names of the options, without dashes and values."""
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            yield re.split(r"\+?=", argument[2:])[0]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < 150


def test_there_are_commands_to_check() -> None:
    named = {arguments[0] for _, arguments in COMMANDS if arguments}
    assert named == set(cera.cli.main.COMMANDS), "every command is documented, and no other"


@pytest.mark.parametrize(("page", "arguments"), [c for c in COMMANDS if c[1][0] == "train"])
def test_training_commands_name_settings_that_exist(page: str, arguments: list[str]) -> None:
    for option in options(arguments):
        group, _, rest = option.partition(".")
        if group in SETTINGS:
            assert rest.split(".")[0] in inspect.signature(SETTINGS[group].__init__).parameters, option
        else:
            assert group in OF_A_RUN, option


@pytest.mark.parametrize(("page", "arguments"), [c for c in COMMANDS if c[1][0] not in ("train", "lm-eval")])
def test_other_commands_name_options_that_exist(page: str, arguments: list[str]) -> None:
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    # `--model.base` of an estimate and the like are options of `cera train`
    names = {".".join(name.split(".")[:2]) for name in options(ours) if name.partition(".")[0] not in SETTINGS}
    for name in names:
        assert re.search(rf"--{re.escape(name)}\b", help_of(ours[0])), name


@pytest.mark.parametrize(("page", "arguments"), COMMANDS)
def test_commands_name_configurations_that_exist(page: str, arguments: list[str]) -> None:
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        if value in USERS_OWN:
            continue
        if value.startswith("cera://"):
            assert configuration_file(value).is_file()
        elif value.startswith("configs/"):
            assert list(REPOSITORY.glob(value)), value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """``make docs`` also checks the anchors, between the pages of the site."""
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def class_paths() -> Iterator[str]:
    """Names within the package that the pages mention as code."""
    for page in PAGES:
        text = page.read_text()
        yield from re.findall(r"(?<![\w./])cera(?:\.[A-Za-z_]\w*)+(?!\w|/|\.(?:md|yaml|csv|png))", text)


@pytest.mark.parametrize("path", sorted(set(class_paths())))
def test_class_paths_can_be_imported(path: str) -> None:
    names = path.split(".")
    for length in range(len(names), 0, -1):
        try:
            attribute: Any = importlib.import_module(".".join(names[:length]))
        except ModuleNotFoundError:
            continue
        for name in names[length:]:
            attribute = getattr(attribute, name)
        return


# --- the recipes of extending.md ---


def recipe(title: str) -> dict[str, Any]:
    """Run the Python code of a section, as a module of that name would be."""
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    module = types.ModuleType(title.replace(" ", "_"))
    sys.modules[module.__name__] = module  # as the classes of a module are found there by later tests
    exec(compile(code, title, "exec", dont_inherit=True), vars(module))
    return vars(module)


def test_recipe_of_an_activation() -> None:
    recipe("A new activation")
    try:
        assert cera.CeraConfig(activation="softsign").activation == "softsign"
    finally:
        del cera.adapters.ACTIVATIONS["softsign"]


def test_recipe_of_a_measure() -> None:
    from cera.spectral.measures import MEASURES

    recipe("A new measure of a spectrum")
    measure = MEASURES.pop("numerical_rank")
    assert measure(torch.tensor([2.0, 2.0, 1e-7])) == 2


def test_recipe_of_a_task(tmp_path: Path) -> None:
    rows = tmp_path / "capitals.jsonl"
    rows.write_text('{"country": "Peru", "capital": "Lima"}\n')
    task = recipe("A new evaluation task")["Capitals"](str(rows))
    task.check()
    (problem,) = task.problems()
    assert problem.question == "What is the capital of Peru?"
    assert task.score("It is LIMA.", problem).correct
    assert not task.score("It is Cusco.", problem).correct


def test_recipe_of_an_adapter(tmp_path: Path, tiny_llama: str) -> None:
    from peft import PeftModel, get_peft_model

    config = recipe("An adapter of your own")["SquareConfig"](r=4, target_modules=["q_proj"], init_weights=False)
    ids = torch.arange(8)[None]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).eval()
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert not torch.equal(base(ids).logits, expected)
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits, expected)
