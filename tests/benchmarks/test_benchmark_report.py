import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from matplotlib.figure import Figure
from peft import PeftModel

from benchmarks import figures, logits, mixed, mixed_many, report, scaling
from benchmarks.__main__ import main
from benchmarks.decoding import adapted
from benchmarks.harness import Goal, RatioRow, Result, ratios, save
from benchmarks.process import BenchmarkError, process_age
from cera import CeraConfig, CeraLayer
from cera.adapters.mixed_batch import _STACKS
from cera.models.backbone import load_model

SIZES = {
    f"q/v pair, n=8 d={width} r={r}": {
        "seconds": {"frozen": [0.001, 0.002], "CeRA": [0.002, 0.003 * r]},
        "saved_bytes": {"frozen": 0, "CeRA": 2**20 * r},
        "floor": {"frozen_flops": 100, "adapter_flops": 10 * r, "bytes": 2**20},
        "operations": {
            "CeRA": {"aten::mm": 0.004, "aten::silu": 0.0005, "aten::t": 0.0001},
            "LoRA": {"aten::mm": 0.004},
        },
    }
    for width in (64, 32)
    for r in (16, 4)
}


def point(rank: int = 8, length: int = 64, layers: int = 2, **seconds: float) -> dict:
    return {
        "rank": rank, "length": length, "layers": layers, "floor_seconds": 0.25,
        "seconds": {name: [second, second * 2, second] for name, second in seconds.items()},
        "bytes": {name: [2**20 * rank] * 3 for name in seconds},
    }  # fmt: skip


SCALING = {
    "base": {"rank": 8, "length": 64, "layers": 2},
    "product_flops_per_second": [3e12, 1e12],
    "points": [
        point(rank=16, CeRA=2, LoRA=4),
        point(CeRA=1, LoRA=0.5, DoRA=8),
        point(rank=4, CeRA=0.5, LoRA=1),
        point(length=128, CeRA=1, LoRA=1),
        point(layers=4, CeRA=1, LoRA=1),
    ],
}
RESULTS = {
    result.name: result
    for result in (
        Result("layer", [RatioRow("l", [0.9, 1.1], Goal("<=", 1.0))], "bfloat16", SIZES),
        Result(
            "decoding",
            [
                RatioRow("slower", [1.5], Goal("<=", 1.0)),
                RatioRow("slowest", [4.0], Goal("<=", 1.0)),
                RatioRow("d", [3.0]),
            ],
            "bfloat16",
            {"tokens": 4, "r=4": {"base": [0.001, 0.002], "cera": [0.003, 0.006]}},
        ),
        Result(
            "logits",
            [RatioRow("m", [0.4], Goal("<=", 0.5))],
            "bfloat16",
            {"rows": 2, "length": 4, "vocabulary": 2**17, "bytes": {"ours": [2**21], "full": [2**23]}},
        ),
        Result(
            "tracking",
            [RatioRow("t", [0.002], Goal("<=", 0.01))],
            "bfloat16",
            {"interval": 50, "tracking": [0.5], "steps": [2]},
        ),
        Result(
            "spectra",
            [RatioRow("s", [200], Goal(">=", 50))],
            "float64",
            {"seconds": {"streamed": [0.5]}, "floor_flops": 10**9},
        ),
        Result(
            "training",
            [RatioRow("g", [1.5], Goal(">=", 2.0))],
            "bfloat16",
            {
                "tokens_per_second": {"cera": [600, 650, 700]},
                "padding_share": {"cera": [0.25, 0.25, 0.25]},
                "peak_bytes": {"cera": [2**30] * 3},
                "profiles": {"cera": {"seconds": 2.0, "operations": {"aten::mm": 1.5, "compiled code": 0.5}}},
            },
        ),
        Result(
            "startup",
            [RatioRow("b", [1.0], Goal("<=", 1.0))],
            "bfloat16",
            {
                "seconds_to_first_step": {"cera": [7, 8, 9], "trainer": [6]},
                "seconds_to_its_end": {"cera": [9, 10, 11], "trainer": [7]},
                "import_seconds": {"cera": {"small": 0.01, "torch": 2.0, "lightning": 2.5}, "trainer": {"torch": 2.1}},
            },
        ),
        Result("scaling", [RatioRow("c", [1.0])], "bfloat16", SCALING),
        Result(
            "mixed",
            [RatioRow("x", [1.0], Goal("<=", 1.0))],
            "bfloat16",
            {"seconds": {"prompts": {"base": [1.0], "CeRA": [1.5]}}},
        ),
    )
}
NAMES = list(RESULTS)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for result in RESULTS.values():
        save(result, quick=False, folder=tmp_path / "results")
    return tmp_path / "results"


def without_padding(text: str) -> str:
    """Return Markdown whose table cells have one space on each side."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("|"):
            lines[i] = f"| {' | '.join(cell.strip() for cell in line[1:-1].split('|'))} |"
    return "\n".join(lines)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_report_has_every_row_its_pictures_and_the_notes_where_they_belong(results, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("What is before the first section stays out.\n\n## decoding\n\nCalls.\n\n- many\n")
    files, unexplained = report.write(NAMES, results, notes, tmp_path / "docs")
    assert unexplained == ["training"]
    assert files[0] == tmp_path / "docs" / "performance.md"
    text = without_padding(files[0].read_text())
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["Goals", *NAMES, "Environment"]
    assert "stays out" not in text
    decoding = text.partition("## decoding")[2].partition("## logits")[0]
    assert "Greedy decoding of one sequence with `model.generate`" in decoding
    assert "Goal: at most 1.02 times LoRA's time for a token" in decoding
    assert "| d | 3 (n=1) |  |  |" in decoding
    assert decoding.endswith("Calls.\n\n- many\n\n")
    shown = re.findall(r"\]\((pictures/.*)\)", text)
    assert [tmp_path / "docs" / picture for picture in shown] == files[1:]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    assert {file.name for file in (tmp_path / "docs" / "pictures").iterdir()} == {file.name for file in files[1:]}


def test_the_overview_counts_goals_and_names_the_farthest_miss(results, tmp_path):
    files, _ = report.write(NAMES, results, tmp_path / "no_notes.md", tmp_path / "docs")
    text = without_padding(files[0].read_text())
    assert "| [decoding](#decoding) | 0 of 2 | slowest: 4, not <= 1 |" in text
    assert "| [training](#training) | 0 of 1 | g: 1.5, not >= 2 |" in text
    assert "| [spectra](#spectra) | 1 of 1 |  |" in text
    assert "| [scaling](#scaling) | none set |  |" in text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("decoding", "| r=4 | cera | 4.5 | 3 |"),
        ("layer", "| q/v pair, n=8 d=64 r=16 | CeRA | 13 | 2.6 | 16 |"),
        ("layer", "| q/v pair, n=8 d=64 r=16 | CeRA | 4 | 0.5 | 0.1 |"),
        ("layer", "| q/v pair, n=8 d=32 r=4 | LoRA | 4 | 0 | 0 |"),
        ("logits", "| full | 8 | 1 |"),
        ("mixed", "| prompts | CeRA | 1.5 | 1.5 |"),
        ("scaling", "| 16 | 64 | 2 | LoRA | 16 | 16 | 16 |"),
        ("scaling", "The product of the floor: 2 TFLOP/s."),
        ("spectra", "| streamed | 500 | 2 |"),
        ("tracking", "| 500 | 2,000 | 50 |"),
        ("startup", "| cera | 8 | 10 |"),
        ("startup", "| lightning | 2,500 | 0 |"),
        ("startup", "| all | 4,510 | 2,100 |"),
        ("training", "| cera | 650 | 25 | 1,024 |"),
        ("training", "| a step of | `mm` | `compiled code` | others |"),
        ("training", "| cera | 1,500 | 500 | 0 |"),
    ],
)
def test_the_distance_from_the_floor_is_computed_from_the_details(name, line):
    printed = report.FLOORS[name](json.loads(json.dumps(RESULTS[name].details)))
    assert line in without_padding(printed).splitlines()


def test_the_environment_is_told_once_and_what_differs_by_benchmark(results, tmp_path):
    environment = json.loads((results / "mixed.json").read_text())["environment"]
    for name in NAMES:
        revision = "abc" if name == "mixed" else "def"
        edit(results / f"{name}.json", environment={**environment, "git_revision": revision, "load_average": [1, 2, 3]})
    files, _ = report.write(NAMES, results, tmp_path / "no_notes.md", tmp_path / "docs")
    end = without_padding(files[0].read_text()).partition("## Environment")[2]
    assert "- load average: 1, 2, 3\n" in end
    assert f"torch {torch.__version__}" in end
    assert "| benchmark | git revision |" in end
    assert "| mixed | abc |" in end
    assert "| layer | def |" in end


def test_results_that_are_not_there_or_quick_are_named(results):
    for name in ("layer", "spectra"):
        (results / f"{name}.json").unlink()
    save(RESULTS["layer"], quick=True, folder=results)
    expected = r"no full result of layer, spectra: .* `python -m benchmarks NAME` .* of layer, are not reported"
    with pytest.raises(BenchmarkError, match=expected):
        report.read(NAMES, results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quick": True}, "should hold the full result of mixed, not the quick one of mixed"),
        ({"name": "layer"}, "should hold the full result of mixed, not the full one of layer"),
        ({"rows": [{"what": "x"}]}, r"is not a result that .*\(KeyError\('ratios'\)"),
        ({"rows": [{"what": "x", "ratios": [1], "goal": "1"}]}, r"is not a result that .*\(ValueError"),
    ],
)
def test_a_file_that_is_no_full_result_is_refused(results, changes, message):
    edit(results / "mixed.json", **changes)
    with pytest.raises(BenchmarkError, match=message):
        report.read(NAMES, results)


def test_a_file_that_is_no_json_is_refused(results):
    (results / "mixed.json").write_text("{")
    with pytest.raises(BenchmarkError, match=r"mixed.json is not a result that .*\(JSONDecodeError"):
        report.read(NAMES, results)


def test_a_note_on_no_benchmark_is_refused(tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("## layer\n\nx\n\n## layers\n\ny\n")
    with pytest.raises(BenchmarkError, match="no benchmark is named layers; headings can be layer, decoding"):
        report.sections(notes, NAMES)
    assert report.sections(notes, [*NAMES, "layers"]) == {"layer": "x", "layers": "y"}


def test_the_command_refuses_with_one_line(tmp_path, capsys):
    assert main(["report", f"--results={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: report: {tmp_path} has no full result of layer, ")
    with pytest.raises(SystemExit) as ended:
        main(["report", "--quick"])
    assert ended.value.code == 2


def test_a_goal_is_drawn_by_benchmark_beside_its_ratio():
    figure = figures.goals(list(RESULTS.values()))
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert list(panels) == [name for name in NAMES if name != "scaling"]  # which has no goal
    assert [label.get_text() for label in panels["decoding"].get_yticklabels()] == ["slower (<= 1)", "slowest (<= 1)"]
    drawn: list[Any] = list(panels["layer"].lines)  # spread, median, goal
    assert [list(line.get_xdata()) for line in drawn] == [[0.9, 1.1], [1.0], [1.0]]
    markers = {name: panels[name].lines[1].get_marker() for name in ("layer", "training")}
    assert markers == {"layer": "o", "training": "X"}


def lines(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    drawn: list[Any] = figure.axes[panel].containers
    return {
        bars.get_label(): [(float(x), float(y)) for x, y in zip(*bars.lines[0].get_data(), strict=True)]
        for bars in drawn
    }


def test_a_series_is_what_varies_from_the_base_in_its_own_field_alone():
    speed, memory = figures.scaling_speed(SCALING), figures.scaling_memory(SCALING)
    ranks = {"CeRA": [(4, 128), (8, 64), (16, 32)], "LoRA": [(4, 64), (8, 128), (16, 16)], "DoRA": [(8, 8)]}
    assert lines(speed, 0) == ranks
    assert lines(speed, 1)["CeRA"] == [(64, 64), (128, 128)]
    assert lines(speed, 2)["CeRA"] == [(2, 64), (4, 64)]
    assert lines(memory, 0)["CeRA"] == [(4, 4), (8, 8), (16, 16)]
    assert [text.get_text() for text in speed.legends[0].get_texts()] == ["CeRA", "LoRA", "DoRA"]


def test_the_layer_is_drawn_against_rank_by_width():
    time, memory = figures.layer_time(SIZES), figures.layer_memory(SIZES)
    assert [ax.get_title() for ax in time.axes] == ["d=32", "d=64"]
    assert lines(time, 0)["frozen"] == [(4, 1.5), (16, 1.5)]
    assert lines(memory, 1)["CeRA"] == [(4, 4), (16, 16)]


# The benchmarks that only the report and its pictures show


def test_a_step_is_counted_and_measured():
    r, length, layers, vocabulary = 4, 20, 2, 500
    cost = scaling.step_cost(scaling.Point(r, length, layers), "CeRA", at_least=0.0, vocabulary=vocabulary)
    frozen = layers * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    trained = layers * r * (3 * 576 + 192)
    attention = 12 * layers * 576 * sum(range(1, length + 1))
    labels = round(scaling.LABELLED * length)
    expected = length * (4 * frozen + 6 * trained) + labels * 4 * 576 * vocabulary + attention
    assert cost["flops"] == expected
    assert cost["seconds"] > 0
    assert cost["bytes"] > 0


@pytest.mark.parametrize("name", ["CeRA", "LoRA", "DoRA"])
def test_all_contenders_start_from_the_same_base_in_bf16(name):
    model, cera = (
        cast(PeftModel, logits.module(50, layers=1, adapter=adapter).model)
        for adapter in (scaling.adapters(4)[name], scaling.adapters(8)["CeRA"])
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.arange(10)[None]
    with torch.no_grad(), model.disable_adapter():
        base = model(ids).logits
        untrained = cera(ids).logits
    assert torch.equal(base, untrained)


@pytest.mark.slow
def test_the_series_are_measured_where_they_cross_once_and_in_fresh_processes():
    assert scaling.in_process(process_age) < process_age()
    base = scaling.Point(4, 8, 1)
    result = scaling.measure(base, {"rank": (4, 8), "layers": (1, 2)}, rounds=2, at_least=0.0)
    points = result.details["points"]
    assert [(p["rank"], p["length"], p["layers"]) for p in points] == [(4, 8, 1), (8, 8, 1), (4, 8, 2)]
    assert [list(p["seconds"]) for p in points] == [["CeRA", "LoRA", "DoRA"], ["CeRA", "LoRA"], ["CeRA", "LoRA"]]
    assert len(result.rows) == 2 * 4
    seconds = points[0]["seconds"]
    assert result.rows[0].ratios == ratios(seconds["LoRA"], seconds["CeRA"])  # tokens/s: the other way round
    assert points[2]["floor_seconds"] > points[0]["floor_seconds"] > 0
    with pytest.raises(KeyError, match="nothing"):
        scaling.in_process(scaling.step_cost, base, "nothing", 0.0)


def test_a_mixed_batch_is_what_its_adapters_give_one_after_the_other(tiny_llama):
    drawn = CeraConfig(r=4, target_modules=mixed.TARGETS, task_type="CAUSAL_LM", init_weights=False)
    model = mixed.with_adapters(tiny_llama, drawn)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.arange(6 * 5).view(6, 5)
    names = [mixed.ADAPTERS[i] for i in (2, 0, 0, 3, 1, 2)]
    output = mixed.prefill(model, ids, adapter_names=names)
    assert output.shape == (6, 1, model.config.vocab_size)
    torch.testing.assert_close(output, mixed.in_turn(mixed.prefill, model, ids, names), rtol=0.05, atol=0.05)
    alone = mixed.prefill(adapted(tiny_llama, drawn).get_base_model(), ids)
    assert (output - alone).abs().max() > 0.2
    assert mixed.generate(model, ids, tokens=3, adapter_names=names).shape == (6, 5 + 3)


def test_the_mixed_benchmark_compares_prompts_and_generation(tiny_llama):
    result = mixed.compare(tiny_llama, mixed.BatchSize(rows=4, prompt=6, tokens=2, r=4), rounds=2)
    assert [str(row.goal) for row in result.rows] == ["<= 1", "None", "None"] * 2
    assert list(result.details["seconds"]) == ["prompts of 6 tokens", "generating 2 tokens"]
    generation_seconds = result.details["seconds"]["generating 2 tokens"]
    assert list(generation_seconds) == ["base", "CeRA", "LoRA", "CeRA, one adapter after the other"]
    assert result.rows[3].ratios == ratios(generation_seconds["CeRA"], generation_seconds["LoRA"])


def test_the_benchmark_of_many_adapters_compares_layers_and_a_model(tiny_llama):
    size = mixed_many.BatchSize(rows=6, adapters=3, prompt=5, tokens=2, r=4)
    assert size.names == ["tenant0", "tenant1", "tenant2"] * 2
    result = mixed_many.compare(tiny_llama, size, rounds=2, at_least=0.0)
    goals = [str(row.goal) for row in result.rows]
    assert goals == [">= 2"] * 2 + [">= 0.8", "None", "None"] * 2
    seconds = result.details["seconds"]
    assert [list(contenders) for contenders in seconds.values()] == [["base", "CeRA", "LoRA"]] * 4
    assert result.rows[0].ratios == ratios(*(seconds["q/v pair, 1 tokens per row"][kind] for kind in ("LoRA", "CeRA")))
    assert mixed_many.shares({"base": [1.0, 1.0], "CeRA": [1.2, 3.0], "LoRA": [2.0, 3.0]}) == pytest.approx([0.8, 0.0])


def test_the_benchmark_of_many_adapters_measures_groups(tiny_llama):
    """Adapters that do something, and none that is computed one after the other."""
    size = mixed_many.BatchSize(rows=4, adapters=2, prompt=5, tokens=2, r=4)
    model = mixed_many.with_adapters(load_model(tiny_llama, torch.bfloat16), size, cera=True)
    ids = torch.arange(4 * 5).view(4, 5)
    output = mixed.prefill(model, ids, adapter_names=size.names)
    layers = [module for module in model.modules() if isinstance(module, CeraLayer)]
    stacks = [_STACKS[layer] for layer in layers]
    assert [stack.looped for stack in stacks] == [()] * len(layers)
    assert {name for stack in stacks for name in stack.rows.groups} == {"tenant0", "tenant1"}
    other = mixed.prefill(model, ids, adapter_names=["tenant1", "tenant0"] * 2)
    assert not torch.equal(output, other)
