"""The studies in ``configs/studies``: what must hold of them before they are run."""

import importlib
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from peft import LoraConfig, PeftConfig

from cera import CeraConfig
from cera.cli.compose import compose, merge
from cera.runs.names import check_name
from cera.studies.axes import path_of_config
from cera.studies.definition import Definition, StudyRun, read_definition

SHIPPED = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
PAGE = (REPOSITORY / "docs" / "studies.md").read_text(encoding="utf-8")
SMALL = [path for path in SHIPPED if path.stem.startswith(("smol_", "tunnel_"))]
"""Those that need no cluster."""

each_study = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
definition_of = cache(read_definition)


@each_study
def test_a_study_has_the_name_of_its_file_and_readable_runs(path) -> None:
    definition = definition_of(path)
    assert definition.name == path.stem
    for run in definition.runs:
        check_name(run.name, "name")
    assert len({run.name for run in definition.runs}) == len(definition.runs)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_study_for_this_machine_says_how_many_runs_it_has(path) -> None:
    comment = path.read_text(encoding="utf-8").partition("\nname:")[0]
    (said,) = re.findall(r"\b(\d+) runs\b", comment)
    assert int(said) == definition_of(path).number_of_runs


def test_the_page_has_each_study_with_its_number_of_runs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    shown = {
        f"{prefix}{name}": int(count.replace(",", ""))
        for name, *counts in rows
        for prefix, count in zip(("", "smol_", "tunnel_"), counts, strict=True)
    }
    of_the_paper = {path.stem.removeprefix("tunnel_").removeprefix("smol_") for path in SHIPPED}
    of_the_paper -= {"lr", "quick", "sanity", "sanity_long", "ceiling_long"}
    assert shown.keys() == {f"{prefix}{name}" for name in of_the_paper for prefix in ("", "smol_", "tunnel_")}
    paths = {name: REPOSITORY / f"configs/studies/{name}.yaml" for name in shown}
    assert shown == {name: definition_of(path).number_of_runs for name, path in paths.items()}


@each_study
def test_no_two_methods_are_the_same_adapter(path) -> None:
    """Levels of a factor that are the same number, as alpha = 32 and alpha = 2r at r=16, would count runs twice."""
    assert repeated(definition_of(path)) == []


def test_methods_that_are_the_same_adapter_are_found(tmp_path) -> None:
    names = {"cera": "cera.yaml", "lora": "lora.yaml"}
    adapters = {name: {"config": str(REPOSITORY / "configs" / "adapters" / file)} for name, file in names.items()}
    prefix = "model.adapter.init_args"
    methods = {
        "s1": adapters["cera"],
        "alpha-r": adapters["cera"] | {f"{prefix}.alpha": 64},
        "alpha-2r": adapters["cera"] | {f"{prefix}.alpha": 128},
        "lora": adapters["lora"] | {f"{prefix}.lora_alpha": 64},
        "rslora": adapters["lora"] | {f"{prefix}.lora_alpha": 8, f"{prefix}.use_rslora": True},
        "lora-2r": adapters["lora"],
    }
    base = str(REPOSITORY / "configs" / "parts" / "tunnel.yaml")
    (tmp_path / "study.yaml").write_text(str({"name": "made", "base": base, "axes": {"method": methods}}))
    assert repeated(read_definition(tmp_path / "study.yaml")) == [["alpha-r", "s1"], ["lora", "rslora"]]


def repeated(definition: Definition) -> list[list[str]]:
    """Return the groups of methods whose adapters are trained alike."""
    methods: dict[str, set[str]] = defaultdict(set)
    for run in {run.method: run for run in definition.runs}.values():
        methods[adapter_of(run)].add(run.method)
    return [sorted(group) for group in methods.values() if len(group) > 1]


def adapter_of(run: StudyRun) -> str:
    """Return the settings of a run's adapter, with the factor on its update in place of the settings that make it."""
    content: Any = {}
    for file in run.configs:
        content = merge(content, compose_once(path_of_config(file, Path())))
    for key, value in run.settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        content = merge(content, value)
    adapter = content["model"]["adapter"]
    module, _, name = adapter["class_path"].rpartition(".")
    settings = adapter["init_args"]
    if name == "AdaLoraConfig":  # its number of steps is the trainer's
        return str(sorted(settings.items()))
    config: PeftConfig = getattr(importlib.import_module(module), name)(**settings)
    shown = config.to_dict()
    if isinstance(config, CeraConfig):
        shown |= {"scaling": round(config.scaling_at(config.r), 3), "alpha": None}
    elif isinstance(config, LoraConfig):
        divisor = config.r**0.5 if config.use_rslora else config.r
        shown |= {"lora_alpha": round(config.lora_alpha / divisor, 3), "use_rslora": None}
    return str(sorted(shown.items()))


compose_once = cache(compose)
