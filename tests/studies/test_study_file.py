"""The file of a study: which runs it stands for, and what is said of a wrong one."""

import pytest
import yaml
from study_files import content, study, write_files

from cera.studies.axes import StudyError
from cera.studies.definition import parse_definition, read_definition
from cera.studies.measures import BUILT_IN, Measure
from cera.studies.study import Study


def runs_of(folder, **fields):
    return study(folder, **fields).definition.runs


def test_runs_are_all_combinations_with_readable_names_in_a_fixed_order(tmp_path) -> None:
    axes = {
        "adapter": {"cera": "cera.yaml", "lora": {"config": "lora.yaml", "model.warmup": 0.1}},
        "rank": {"by": "adapter", "values": {"cera": [64], "lora": {"r8": {"model.adapter.init_args.r": 8}}}},
        "learning_rate": {"by": "adapter", "values": {"cera": ["3e-4", 0.001], "lora": [1e-4]}},
        "seed": [0, 1],
    }
    runs = runs_of(tmp_path, axes=axes, settings={"trainer.max_steps": 20}, select={"axis": "learning_rate"})
    assert [run.name for run in runs] == [
        "cera-r64-lr3e-4-seed0",
        "cera-r64-lr3e-4-seed1",
        "cera-r64-lr1e-3-seed0",
        "cera-r64-lr1e-3-seed1",
        "lora-r8-lr1e-4-seed0",
        "lora-r8-lr1e-4-seed1",
    ]
    first, last = runs[0], runs[-1]
    assert [path.rpartition("/")[2] for path in last.configs] == ["base.yaml", "lora.yaml"]
    assert first.numbers == {"rank": 64, "learning_rate": 3e-4, "seed": 0}
    assert (first.method, last.method) == ("cera-r64", "lora-r8")
    assert last.settings["model.warmup"] == 0.1
    assert last.settings["model.adapter.init_args.r"] == 8
    arguments = first.arguments()
    assert "--model.learning_rate=3e-4" in arguments
    assert "--trainer.max_steps=20" in arguments
    assert "--seed_everything=0" in arguments
    assert read_definition(tmp_path / "small.yaml").runs == runs


def test_an_axis_may_depend_on_one_that_depends_on_another(tmp_path) -> None:
    scales = {"small": {"model.adapter.init_args.alpha": 8}, "large": {"model.adapter.init_args.alpha": 32}}
    axes = {
        "adapter": {"cera": "cera.yaml", "lora": "lora.yaml"},
        "scale": {"by": "adapter", "values": {"cera": scales, "lora": {"own": {"model.warmup": 0.1}}}},
        "learning_rate": {"by": "scale", "values": {"small": [1e-2], "large": [1e-3], "own": [1e-1, 1e-4]}},
    }
    assert [run.name for run in runs_of(tmp_path, axes=axes)] == [
        "cera-small-lr0.01",
        "cera-large-lr1e-3",
        "lora-own-lr0.1",
        "lora-own-lr1e-4",
    ]
    del axes["learning_rate"]["values"]["own"]
    message = r"learning_rate.values must have the values of the axis scale \(large, own, small\), got large, small"
    with pytest.raises(StudyError, match=message):
        runs_of(tmp_path, axes=axes)


def measuring(folder, **fields) -> list[str]:
    """The runs that measure the base."""
    return [run.name for run in runs_of(folder, **fields) if run.settings["trainer.num_sanity_val_steps"] == -1]


def test_the_base_is_measured_once_a_study(tmp_path) -> None:
    assert measuring(tmp_path, select={"axis": "learning_rate"}) == ["lora-lr0.01"]
    assert measuring(tmp_path, axes={"adapter": {"cera": "cera://adapters/cera"}, "seed": [0, 1], "rank": [8, 16]}) == [
        "cera-seed0-r8"
    ]
    assert measuring(tmp_path, settings={"trainer.num_sanity_val_steps": 0}) == []


@pytest.mark.parametrize(
    "value",
    [
        {"model.base": "other"},
        {"data.max_length": 128},
        {"data.dataset.init_args.size": 60},
        {"trainer.precision": "32-true"},
        {"trainer.limit_val_batches": 2},
        {"config": "cera://adapters/qcera"},
        {"config": "includes.yaml"},
    ],
    ids=str,
)
def test_runs_of_another_base_other_data_or_another_precision_measure_their_own(tmp_path, value) -> None:
    (tmp_path / "includes.yaml").write_text("include: [part.yaml]\nmodel: {adapter: {init_args: {r: 8}}}\n")
    (tmp_path / "part.yaml").write_text("trainer: {precision: 32-true}\n")
    plain = {"plain": {"config": "cera://adapters/cera"}}
    alike = {"alike": {"config": "cera://adapters/cera_calibrated", "model.learning_rate": 1, "data.seed": 3}}
    axes = {"kind": {**plain, **alike, "differs": value}, "seed": [0, 1]}
    assert measuring(tmp_path, axes=axes) == ["plain-seed0", "differs-seed0"]


def test_what_a_file_appends_or_overrides_counts_as_it_applies(tmp_path) -> None:
    for name, text in {"a": "data: {x+: 1}", "b": "data: {x+: 2}", "same": "data: {max_length: 64}"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    last = {"data.x+": 3, "data.max_length": 64}
    axes = {"kind": {name: {"config": f"{name}.yaml", **last} for name in ("a", "b")}}
    assert measuring(tmp_path, axes=axes) == ["a", "b"]
    axes = {"kind": {"file": "same.yaml", "setting": {"data.max_length": 64}}}
    assert measuring(tmp_path, axes=axes) == ["file"]


@pytest.mark.parametrize("text", ["include: [loop.yaml]", "include: [nowhere.yaml]", "include: 3", "a: ["])
def test_a_file_that_cannot_be_read_is_left_to_the_run(tmp_path, text) -> None:
    (tmp_path / "loop.yaml").write_text(text)
    assert measuring(tmp_path, axes={"kind": {"loop": "loop.yaml"}}) == ["loop"]


def test_values_that_are_no_words_become_arguments(tmp_path) -> None:
    data = {"class_path": "cera.data.SlimOrca", "init_args": {"streaming": True}}
    axes = {"packing": {"on": {"data.packing": True, "data.validation": data}}}
    (run,) = runs_of(tmp_path, axes=axes)
    assert "--data.packing=true" in run.arguments()
    (given,) = [argument for argument in run.arguments() if argument.startswith("--data.validation=")]
    assert yaml.safe_load(given.partition("=")[2]) == data


WRONG = [
    ({"resources": {"cpus": 0}}, "resources.cpus must be a positive number, got 0"),
    ({"resources": {"gpus": -1}}, "resources.gpus must be a number of at least 0, got -1"),
    ({"resources": {"gpus": "1"}}, "resources.gpus must be a number of at least 0, got '1'"),
    ({"resources": {"memory": 1}}, "resources has the unknown key 'memory'; there are cpus, gpus"),
    ({"stop_early": {"reduction": 3}}, "stop_early.grace_steps must be a positive integer, got None"),
    ({"stop_early": {"grace_steps": 1.5}}, "stop_early.grace_steps must be a positive integer, got 1.5"),
    ({"stop_early": {"grace_steps": 5, "reduction": 1}}, "stop_early.reduction must be a number greater than 1, got 1"),
    ({"stop_early": {"grace_steps": 5, "rungs": 1}}, "stop_early has the unknown key 'rungs'"),
    ({"axis": 1}, "a study has the unknown key 'axis'; there are axes, base"),
    ({"name": "a/b"}, "name must be of letters"),
    ({"base": "nowhere.yaml"}, r"base: there is no file .*nowhere\.yaml; names are relative"),
    ({"base": "cera://nowhere"}, r"base: there is no file"),
    ({"base": []}, "base must name at least one"),
    ({"settings": {"max steps": 1}}, "settings has 'max steps', which is no key"),
    ({"settings": {"name": "x"}}, "settings has 'name', which the study sets itself"),
    ({"axes": {}}, "axes must be a mapping with at least one entry, got {}"),
    ({"axes": {"learning_rate": []}}, "axes.learning_rate must be a list of values .* got \\[\\]"),
    ({"axes": {"adapter": ["cera.yaml"]}}, "axes.adapter: a list is of values of a key .* or of learning_rate, rank"),
    ({"axes": {"adapter": {"cera": "gone.yaml"}}}, "axes.adapter.cera: there is no file"),
    ({"axes": {"seed": [0, 0]}}, "axes.seed has the value seed0 twice"),
    ({"axes": {"seed": [[0]]}}, r"axes.seed must hold numbers or words, got \[0\]"),
    ({"axes": {"data.dataset": ["a b"]}}, "'dataseta b', which becomes a part of names of runs"),
    ({"axes": {"seed": {"by": "adapter", "values": {}}}}, r"axes.seed.by must name an earlier axis \(there is none\)"),
    (
        {"axes": {"adapter": {"cera": "cera.yaml"}, "seed": {"by": "adapter", "values": {"lora": [0]}}}},
        r"axes.seed.values must have the values of the axis adapter \(cera\), got lora",
    ),
    (
        {"axes": {"a": {"x": "cera.yaml", "x-y": "lora.yaml"}, "b": {"y-z": "cera.yaml", "z": "lora.yaml"}}},
        "two runs have the name x-y-z",
    ),
    ({"measure": ["perplexty"]}, "measure: 'perplexty' must be perplexity, held_out, spectra"),
    ({"measure": ["nowhere.Measure"]}, "measure: nowhere.Measure cannot be imported"),
    ({"measure": [{"spectra": {"protocol": "mine"}}]}, "measure.spectra.protocol must be one of paper, authors, ours"),
    ({"measure": [{"spectra": {"centre": "yes"}}]}, "measure.spectra.centre must be true or false, got 'yes'"),
    ({"measure": [{"spectra": {"protocl": "ours"}}]}, "measure.spectra has the unknown key 'protocl'"),
    ({"measure": ["evaluation"]}, "measure.evaluation: .* missing 2 required"),
    ({"measure": [{"held_out": {"settings": {"data.batch_size": 1}}}]}, "must set data.validation"),
    ({"select": {"axis": "seed"}}, r"select.axis must be an axis \(adapter, learning_rate\), got 'seed'"),
    ({"select": {"axis": "learning_rate", "goal": "low"}}, "select.goal must be min or max, got 'low'"),
    ({"report": {"reference": "dora"}}, r"report.reference must be a method \(lora-lr0.01, lora-lr0.03, "),
    ({"report": {"paper": {"perplexity": {"dora": 3.9}}}}, "report.paper.perplexity must map methods"),
    ({"report": {"metrics": "perplexity"}}, "report.metrics must be a list of names"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_file_is_one_line_that_names_the_field(tmp_path, fields, message) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        study(tmp_path, **fields)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "small.yaml"))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "small.yaml: while parsing"), ("- 1", "a study must be a mapp")]
)
def test_what_is_no_mapping_is_one_line(tmp_path, text, message) -> None:
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Study.load(tmp_path / "small.yaml")
    with pytest.raises(ValueError, match=r"nowhere.yaml is missing"):
        Study.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("field", ["name", "base", "axes"])
def test_a_required_field(tmp_path, field) -> None:
    write_files(tmp_path)
    without = {key: value for key, value in content().items() if key != field}
    with pytest.raises(ValueError, match=f"needs the field {field}"):
        parse_definition(without, tmp_path)


def test_a_study_extends_another(tmp_path) -> None:
    study(
        tmp_path,
        settings={"trainer.max_steps": 20, "model.warmup": 0.1},
        measure=["perplexity"],
        report={"metrics": []},
    )
    (tmp_path / "twin.yaml").write_text(
        yaml.safe_dump(
            {
                "extends": "small.yaml",
                "name": "twin",
                "settings": {"trainer.max_steps": 5, "model.warmup": None},
                "axes": {"learning_rate": None, "rank": {"r8": {"number": 8, "model.adapter.init_args.r": 8}}},
            }
        )
    )
    twin = read_definition(tmp_path / "twin.yaml")
    assert [run.name for run in twin.runs] == ["lora-r8", "cera-r8"]
    assert all(run.numbers == {"rank": 8} for run in twin.runs)
    settings = {"trainer.max_steps": 5, "model.adapter.init_args.r": 8}
    assert all(settings.items() <= run.settings.items() for run in twin.runs)
    assert "model.warmup" not in twin.runs[0].settings
    assert [path.rpartition("/")[2] for path in twin.runs[0].configs] == ["base.yaml", "lora.yaml"]


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("a.yaml", r"extends: a.yaml extends itself, through small.yaml, a.yaml"),
        ("none.yaml", r"none.yaml"),
        ("../small.yaml", r"extends must name a study's file in the same folder, got '../small.yaml'"),
        (3, r"extends must name a study's file in the same folder, got 3"),
    ],
)
def test_a_study_that_extends_nothing_sensible_says_so(tmp_path, extends, message) -> None:
    (tmp_path / "a.yaml").write_text("extends: a.yaml\n")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"extends": extends, "name": "small"}))
    with pytest.raises(StudyError, match=message):
        read_definition(tmp_path / "small.yaml")


def test_what_a_study_prepares_is_a_list_of_commands(tmp_path) -> None:
    assert study(tmp_path, prepare=["pretrain --config x"]).definition.prepare == ("pretrain --config x",)
    for wrong in ("pretrain", [3], [""]):
        with pytest.raises(StudyError, match=r"prepare must be a list of commands of cera"):
            study(tmp_path, prepare=wrong)


def test_the_number_of_a_named_value_must_be_one(tmp_path) -> None:
    with pytest.raises(StudyError, match=r"axes.rank.r8.number must be a number, .* got 'eight'"):
        study(tmp_path, axes={"rank": {"r8": {"number": "eight"}}})


class Constant(Measure):
    """A measure of one's own."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value


def test_a_measure_of_ones_own_is_named_by_its_class_path(tmp_path) -> None:
    measures = study(tmp_path, measure=["perplexity", {f"{__name__}.Constant": {"value": 3}}]).definition.measures
    assert isinstance(measures[0], BUILT_IN["perplexity"])
    assert measures[1].value == 3
