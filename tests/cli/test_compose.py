"""Configuration files put together from others."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from cera.cli.compose import compose, merge
from cera.runs.finished import RunError, read_config

CONFIGS = REPOSITORY / "configs"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_without_includes_is_itself(tmp_path) -> None:
    assert compose(write(tmp_path / "a.yaml", "x: {y: 1}\nz: [1, 2]")) == {"x": {"y": 1}, "z": [1, 2]}


def test_an_empty_file_is_an_empty_configuration(tmp_path) -> None:
    assert compose(str(write(tmp_path / "a.yaml", "# nothing\n"))) == {}


def test_own_keys_go_on_top_of_included_ones_and_later_files_on_top_of_earlier(tmp_path) -> None:
    write(tmp_path / "one.yaml", "a: 1\nb: 1\nc: 1")
    write(tmp_path / "two.yaml", "b: 2\nc: 2")
    path = write(tmp_path / "top.yaml", "c: 3\ninclude: [one.yaml, two.yaml]")
    assert compose(path) == {"a": 1, "b": 2, "c": 3}


def test_mappings_are_merged_deeply_and_all_else_is_replaced(tmp_path) -> None:
    write(tmp_path / "base.yaml", "model: {a: {x: 1, y: 2}, list: [1, 2, 3], n: {k: 1}, s: text}")
    path = write(tmp_path / "top.yaml", "include: [base.yaml]\nmodel: {a: {y: 3, z: 4}, list: [9], n: null, s: {k: 1}}")
    assert compose(path) == {"model": {"a": {"x": 1, "y": 3, "z": 4}, "list": [9], "n": None, "s": {"k": 1}}}


def test_paths_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch) -> None:
    write(tmp_path / "parts/deep/leaf.yaml", "leaf: 1")
    write(tmp_path / "parts/sibling.yaml", "sibling: 1")
    write(tmp_path / "parts/middle.yaml", "include: [deep/leaf.yaml, sibling.yaml]\nmiddle: 1")
    write(tmp_path / "runs/top.yaml", "include: [../parts/middle.yaml]\ntop: 1")
    monkeypatch.chdir(tmp_path / "parts")
    assert compose("../runs/top.yaml") == {"leaf": 1, "sibling": 1, "middle": 1, "top": 1}


def test_a_file_may_be_included_on_two_ways(tmp_path) -> None:
    write(tmp_path / "base.yaml", "a: 1\nb: 1")
    write(tmp_path / "left.yaml", "include: [base.yaml]\na: 2")
    write(tmp_path / "right.yaml", "include: [base.yaml]\nc: 3")
    path = write(tmp_path / "top.yaml", "include: [left.yaml, right.yaml]")
    assert compose(path) == {"a": 1, "b": 1, "c": 3}  # right brings base's `a` along again


def test_include_is_not_part_of_the_result(tmp_path) -> None:
    write(tmp_path / "base.yaml", "a: 1")
    assert "include" not in compose(write(tmp_path / "top.yaml", "include: [base.yaml]"))


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]], ids=["itself", "two", "three"])
def test_a_cycle_is_an_error_that_names_the_chain(tmp_path, names) -> None:
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        write(tmp_path / f"{name}.yaml", f"include: [{following}.yaml]")
    chain = " -> ".join(str(tmp_path / f"{name}.yaml") for name in [*names, names[0]])
    with pytest.raises(ValueError, match=f"includes itself: {re.escape(chain)}"):
        compose(tmp_path / "a.yaml")


def test_a_cycle_is_seen_through_other_spellings_of_a_path(tmp_path) -> None:
    write(tmp_path / "a.yaml", f"include: [../{tmp_path.name}/a.yaml]")
    with pytest.raises(ValueError, match="includes itself"):
        compose(tmp_path / "a.yaml")


def test_a_missing_file_is_an_error_that_names_the_chain(tmp_path) -> None:
    write(tmp_path / "middle.yaml", "include: [gone.yaml]")
    path = write(tmp_path / "top.yaml", "include: [middle.yaml]")
    chain = " -> ".join(str(tmp_path / name) for name in ("top.yaml", "middle.yaml", "gone.yaml"))
    with pytest.raises(ValueError, match=f"no such configuration: {re.escape(chain)}"):
        compose(path)


@pytest.mark.parametrize("text", ["- 1\n- 2", "just text", "3"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, text) -> None:
    write(tmp_path / "list.yaml", text)
    path = write(tmp_path / "top.yaml", "include: [list.yaml]")
    with pytest.raises(ValueError, match=r"not a mapping.*top\.yaml -> .*list\.yaml"):
        compose(path)


# Appending


@pytest.mark.parametrize("value", ["[b]", "b"], ids=["list", "item"])
def test_a_key_with_a_plus_appends_to_the_included_list(tmp_path, value) -> None:
    write(tmp_path / "base.yaml", "trainer: {callbacks: [a], max_steps: 1}")
    path = write(tmp_path / "top.yaml", f"include: [base.yaml]\ntrainer: {{callbacks+: {value}}}")
    assert compose(path) == {"trainer": {"callbacks": ["a", "b"], "max_steps": 1}}


def test_appending_goes_through_several_files_in_their_order(tmp_path) -> None:
    write(tmp_path / "base.yaml", "x: {list: [a]}")
    write(tmp_path / "more.yaml", "x: {list+: [b]}")
    write(tmp_path / "most.yaml", "include: [base.yaml, more.yaml]\nx: {list+: [c]}")
    assert compose(tmp_path / "most.yaml") == {"x": {"list": ["a", "b", "c"]}}
    both = write(tmp_path / "both.yaml", "include: [most.yaml, more.yaml]\nx: {list+: [e], list: [d]}")
    assert compose(both) == {"x": {"list": ["d", "e"]}}  # a new list, then what is appended to it


def test_appending_to_what_an_earlier_config_has_is_left_to_the_command_line(tmp_path) -> None:
    write(tmp_path / "more.yaml", "x: {list+: [b]}")
    path = write(tmp_path / "top.yaml", "include: [more.yaml]\nx: {list+: [c]}")
    assert compose(path) == {"x": {"list+": ["b", "c"]}}
    write(tmp_path / "anew.yaml", "include: [more.yaml]\nx: {list: [d]}")
    assert compose(tmp_path / "anew.yaml") == {"x": {"list": ["d"]}}


def test_appending_to_null_is_a_list_of_what_is_appended(tmp_path) -> None:
    write(tmp_path / "base.yaml", "x: {list: null}")
    assert compose(write(tmp_path / "top.yaml", "include: [base.yaml]\nx: {list+: [c]}")) == {"x": {"list": ["c"]}}


@pytest.mark.parametrize("text", ["{a: [}", "\x00", "a: 1\n b: 2"])
def test_a_file_that_is_not_yaml_is_an_error_that_names_it(tmp_path, text) -> None:
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ValueError, match=r"not YAML: .*broken\.yaml"):
        compose(path)


# class_path


LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 64, "lora_alpha": 128}}


def test_another_class_path_replaces_the_mapping() -> None:
    cera = {"class_path": "cera.CeraConfig", "init_args": {"r": 8}}
    assert merge({"adapter": LORA, "lr": 1}, {"adapter": cera}) == {"adapter": cera, "lr": 1}
    bare = {"class_path": "cera.CeraConfig"}
    assert merge({"adapter": LORA}, {"adapter": bare}) == {"adapter": bare}


def test_the_same_class_path_or_none_merges_the_arguments() -> None:
    merged = {"class_path": "peft.LoraConfig", "init_args": {"r": 8, "lora_alpha": 128}}
    assert merge(LORA, {"class_path": "peft.LoraConfig", "init_args": {"r": 8}}) == merged
    assert merge(LORA, {"init_args": {"r": 8}}) == merged


TREES = st.recursive(
    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(MAPPINGS, MAPPINGS)
def test_merging_goes_key_by_key_and_down_into_mappings(base, over) -> None:
    assert merge(base, {}) == base == merge({}, base) == merge(base, base)
    merged = merge(base, over)
    assert merged.keys() == base.keys() | over.keys()
    for key, value in merged.items():
        if key not in over:
            assert value == base[key]
        elif key not in base or not isinstance(over[key], dict):
            assert value == over[key]
        else:
            assert value == merge(base[key], over[key])


@given(MAPPINGS, MAPPINGS)
def test_merging_changes_neither_side(base, over) -> None:
    copies = yaml.safe_load(yaml.safe_dump([base, over]))
    merge(base, over)
    assert [base, over] == copies


# The configurations of this repository


RUNS = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("eval_")]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_configuration_composes_to_a_whole_run(path) -> None:
    config = compose(path)
    assert config["name"] == path.stem
    assert config.keys() >= {"name", "seed_everything", "model", "data", "trainer", "checkpoint_every"}
    assert {"base", "adapter", "learning_rate"} <= config["model"].keys()
    assert config["model"]["adapter"].keys() == {"class_path", "init_args"}
    assert {"r", "target_modules"} <= config["model"]["adapter"]["init_args"].keys()
    assert config["data"]["dataset"]["class_path"].startswith("cera.data.")
    assert config["trainer"]["max_steps"] > 0


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {"cera_r128", "lora_r128", "smol_cera", "smol_lora"}


def test_a_configuration_of_the_repository_keeps_what_it_does_not_change() -> None:
    config = compose(CONFIGS / "cera_r128.yaml")
    assert config["model"]["adapter"]["init_args"]["r"] == 128
    part = yaml.safe_load((CONFIGS / "adapters" / "cera.yaml").read_text())["model"]["adapter"]
    remaining = {key: value for key, value in part["init_args"].items() if key != "r"}
    assert remaining
    assert config["model"]["adapter"]["init_args"] == {**remaining, "r": 128}


# Files that would not end


def laughing(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (laughing(9), "aliases stand for 1[0-9]+ keys and values, and 100000 are the limit"),
        ("a: &a {b: 1}\n" + "\n".join(f"c{i}: {{<<: [{', '.join(['*a'] * 9)}]}}" for i in range(4000)), "limit"),
        ("a: &a [*a]", "an alias refers to the list or mapping that it stands in"),
        ("a: &a {b: {c: *a}}", "an alias refers to"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: 1\n" * 200_000, "1000000 characters"),
        ("a: &x 1\nb: *y", "not YAML"),
        ("a: !!int ''", "not of the type of its tag"),
        ("a: !!timestamp x", "not of the type of its tag"),
        ("a: !!bool x", "not of the type of its tag"),
        ("include: 5", "include must name files, got 5"),
        ("include: [a.yaml, [b]]", "include must name files"),
        ("include: {a: b}", "include must name files"),
        (f"include: {'x' * 300}", "no such configuration"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, text, complaint) -> None:
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(ValueError, match=complaint) as refusal:
        compose(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("text", [laughing(9), "model: &a {b: *a}", "- " * 50_000, "model: {a: 1}\n" * 50_000])
def test_the_configuration_of_somebody_elses_run_has_the_same_limits(tmp_path, text) -> None:
    write(tmp_path / "config.yaml", text)
    with pytest.raises(RunError, match="is not a run directory") as refusal:
        read_config(tmp_path)
    assert "\n" not in str(refusal.value)


def test_aliases_within_the_limits_are_copies(tmp_path) -> None:
    path = write(tmp_path / "a.yaml", f"{laughing(4)}\nb: &b {{c: 1}}\nd: {{<<: *b, e: 2}}")
    composed = compose(path)
    assert composed["a1"] == [["x"] * 10] * 10
    assert composed["d"] == {"c": 1, "e": 2}


def test_includes_that_multiply_are_read_once(tmp_path) -> None:
    for i in range(60):
        write(tmp_path / f"{i}.yaml", f"include: [{i + 1}.yaml, {i + 1}.yaml]\nk{i}: {i}")
    write(tmp_path / "60.yaml", "last: 1")
    assert compose(tmp_path / "0.yaml") == {**{f"k{i}": i for i in range(60)}, "last": 1}


def test_appended_lists_that_multiply_are_refused(tmp_path) -> None:
    for i in range(40):
        write(tmp_path / f"{i}.yaml", f"include: [{i + 1}.yaml, {i + 1}.yaml]")
    write(tmp_path / "40.yaml", "x+: [1]")
    with pytest.raises(ValueError, match="append more than 100000 items to x"):
        compose(tmp_path / "0.yaml")


def test_a_long_chain_of_includes_is_refused(tmp_path) -> None:
    for i in range(2000):
        write(tmp_path / f"{i}.yaml", f"include: [{i + 1}.yaml]")
    write(tmp_path / "2000.yaml", "")
    with pytest.raises(ValueError, match=r"more than 100 files: .*/0\.yaml"):
        compose(tmp_path / "0.yaml")


def test_includes_through_a_link_to_the_folder_itself_end(tmp_path) -> None:
    write(tmp_path / "a.yaml", "include: [again/a.yaml]")
    (tmp_path / "again").symlink_to(".")
    with pytest.raises(ValueError, match="includes itself"):
        compose(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="no such configuration"):
        compose(write(tmp_path / "b.yaml", "include: [/dev/zero]"))
