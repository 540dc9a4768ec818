"""Configurations of the package: ``cera://NAME``."""

from pathlib import Path

import pytest
from conftest import REPOSITORY

from cera.cli.compose import compose
from cera.cli.shipped import argument_with_file, configuration_file, shipped_configurations


def test_a_name_is_a_file_of_the_package() -> None:
    expected = (REPOSITORY / "configs" / "smol_cera.yaml").resolve()
    for name in ("cera://smol_cera", "cera://smol_cera.yaml", Path("cera://smol_cera")):
        assert configuration_file(name).resolve() == expected
    assert configuration_file("cera://adapters/lora").name == "lora.yaml"
    assert configuration_file("configs/a.yaml") == Path("configs/a.yaml")


def test_every_configuration_has_a_name() -> None:
    files = {path.resolve() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {configuration_file(f"cera://{name}").resolve() for name in shipped_configurations()} == files


@pytest.mark.parametrize(
    ("name", "expected"),
    [("smol_cear", "Did you mean smol_cera"), ("xyz", "There are adapters/adalora"), ("../pyproject", "has no")],
)
def test_an_unknown_name_is_an_error_with_similar_ones(name, expected) -> None:
    with pytest.raises(ValueError, match=f"no configuration cera://{name}.*") as raised:
        configuration_file(f"cera://{name}")
    assert expected in str(raised.value)


def test_names_are_included_and_relative_includes_work_within(tmp_path) -> None:
    user_file = tmp_path / "own.yaml"
    user_file.write_text("include: [cera://smol_cera, cera://adapters/lora]\nname: own")
    composed = compose(user_file)
    assert composed["name"] == "own"
    assert composed["model"]["adapter"]["class_path"] == "peft.LoraConfig"
    assert compose("cera://smol_cera") == compose(REPOSITORY / "configs" / "smol_cera.yaml")


def test_arguments() -> None:
    file = str(configuration_file("cera://smol_cera"))
    assert argument_with_file("--config=cera://smol_cera") == f"--config={file}"
    assert argument_with_file("cera://smol_cera") == file
    assert argument_with_file("--name=cera") == "--name=cera"
