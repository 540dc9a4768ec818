import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import layer, logits, peers, spectra, startup, tracking, training
from benchmarks.__main__ import main
from benchmarks.harness import Goal, RatioRow, Result, environment, interleaved, ratio_table, ratios, save, timed
from benchmarks.operations import COMPILED
from benchmarks.process import BenchmarkError, peak_bytes, process_age, reset_peak, resident_bytes, worker

RESULT = Result(
    "example",
    [
        RatioRow("A / B", [0.5, 1.5, 0.9], Goal("<=", 1.0)),
        RatioRow("C / D", [123.4], Goal(">=", 200)),
        RatioRow("E / F", [2.0]),
    ],
    "bfloat16",
    {"seconds": [1.0]},
)


def test_contenders_take_turns():
    turns: list[str] = []

    def turn(name: str) -> int:
        turns.append(name)
        return len(turns)

    measured = interleaved({"a": lambda: turn("a"), "b": lambda: turn("b")}, rounds=3)
    assert turns == ["a", "b"] * 3
    assert measured == {"a": [1, 3, 5], "b": [2, 4, 6]}
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        interleaved({}, rounds=0)


def test_a_turn_lasts_at_least_as_long_as_asked_and_is_divided_by_its_calls():
    calls: list[None] = []
    seconds = timed(lambda: calls.append(None), at_least=0.02)()
    assert len(calls) > 1
    assert seconds * len(calls) == pytest.approx(0.02, rel=0.5)
    timed(lambda: calls.clear())()
    assert calls == []


positive = st.floats(0.01, 100)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9), st.sampled_from(["<=", ">="]), positive)
def test_ratios_are_taken_within_a_round_and_judged_by_their_median(pairs, sense, bound):
    row = RatioRow("what", ratios(*zip(*pairs, strict=True)), Goal(sense, bound))
    expected = sorted(a / b for a, b in pairs)
    assert row.spread == (expected[0], expected[-1])
    middle = len(expected) // 2
    median = expected[middle] if len(expected) % 2 else (expected[middle - 1] + expected[middle]) / 2
    assert row.median == pytest.approx(median)
    assert row.reached == (row.median <= bound if sense == "<=" else row.median >= bound)


def test_ratios_need_rounds_of_both():
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="'what' must have a ratio"):
        RatioRow("what", [])


def test_the_table_has_one_line_per_row():
    lines = ratio_table([RESULT]).splitlines()
    assert set(lines.pop(1)) <= {"|", "-", ":"}
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["what", "measured ratio (spread)", "goal", "reached"],
        ["A / B", "0.9 (0.5 to 1.5, n=3)", "<= 1", "yes"],
        ["C / D", "123 (n=1)", ">= 200", "no"],
        ["E / F", "2 (n=1)", "", ""],
    ]


def test_results_are_saved_with_the_environment_and_quick_ones_apart(tmp_path):
    full, quick = save(RESULT, quick=False, folder=tmp_path / "results"), save(RESULT, True, tmp_path / "results")
    assert [path.name for path in (full, quick)] == ["example.json", "example.quick.json"]
    saved = json.loads(full.read_text())
    assert (saved["dtype"], saved["quick"], saved["details"]) == ("bfloat16", False, {"seconds": [1.0]})
    assert saved["rows"][0] == {
        "what": "A / B", "ratios": [0.5, 1.5, 0.9], "goal": "<= 1", "median": 0.9, "spread": [0.5, 1.5], "reached": True
    }  # fmt: skip
    assert saved["environment"].keys() == environment().keys()
    assert saved["environment"]["threads"] == torch.get_num_threads()
    assert saved["environment"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("r", [4, 8])
def test_saved_activations_are_each_storage_once_and_no_parameter(r):
    n, width, kv_width, bf16 = 32, 64, 16, 2
    steps = layer.contenders(width, kv_width, r, n)
    assert steps["frozen"].saved_bytes() == 0
    # the input, which both layers share, and the product of each layer's A with it
    assert steps["LoRA in bf16"].saved_bytes() == bf16 * n * (width + 2 * r)


def test_the_layer_benchmark_measures_all_baselines():
    result = layer.compare([((64, 16), 4), ((32, 16), 8)], tokens=16, rounds=2, at_least=0.0)
    assert len(result.rows) == 2 * 2 * len([*layer.BASELINES, *layer.OTHERS])
    assert sum(row.goal is None for row in result.rows) == 2 * 2 * len(layer.OTHERS)
    assert [len(row.ratios) for row in result.rows[:2]] == [2, 1]
    details = result.details["q/v pair, n=16 d=64 r=4"]
    assert details["seconds"].keys() == {"frozen", "CeRA", *layer.BASELINES, *layer.OTHERS}
    times = details["seconds"]
    assert result.rows[0].ratios == ratios(times["CeRA"], times["LoRA in bf16"])


def test_the_spectra_benchmark_compares_the_same_singular_values():
    times, error = spectra.compare(spectra.MatrixSize(tokens=64, features=48, rank=4), rounds=2)
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert error < 1e-4


def test_both_ways_to_a_loss_are_the_same_loss():
    model, batch = logits.module(vocabulary=500), logits.batch(500, rows=2, length=20)
    assert (batch["labels"] != -100).sum() == 2 * 12
    ours, full = (logits.loss(way, model, batch) for way in ("ours", "full"))
    torch.testing.assert_close(ours, full)


def test_the_rate_leaves_the_warm_up_out():
    ends = [10.0, 12.0, 13.0, 15.0]  # the first two are warm-up
    steps = [{"begin": end - 1, "end": end, "tokens": 30.0, "positions": 40.0} for end in ends]
    assert training.tokens_per_second(steps) == 60 / 3
    assert training.padding_share(steps) == 0.25


def test_without_gsm8k_the_error_says_where_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CERA_DATA_DIR", str(tmp_path))
    assert main(["training", "--quick", f"--results={tmp_path / 'results'}"]) == 2
    printed = capsys.readouterr().err
    assert f"there is no {tmp_path}/gsm8k/train.jsonl. Set CERA_DATA_DIR" in printed
    assert not (tmp_path / "results").exists()


def test_a_worker_that_fails_is_an_error_with_what_it_printed():
    with pytest.raises(BenchmarkError, match=r"(?s)`python -m benchmarks.spectra --nonsense` ended .*unrecognized"):
        worker("benchmarks.spectra", "--nonsense")


def test_memory_is_that_of_the_process_now_and_at_the_peak():
    size = 256 * 2**20
    reset_peak()
    before = resident_bytes()
    held = torch.ones(size, dtype=torch.uint8)
    del held
    assert peak_bytes() - before >= 0.9 * size
    reset_peak()
    assert peak_bytes() - before < 0.5 * size
    assert 0 < process_age() < 86_400


@pytest.mark.slow
def test_contenders_train_and_are_measured_by_one_clock(tiny_llama, gsm8k):
    names = ("cera", "cera_compiled", "trl_packed", "trainer")
    options = ["--r", "4", "--batch_size", "2", "--max_length", "256"]
    data, profiled = gsm8k / "train.jsonl", ("cera", "cera_compiled")
    result = training.compare(names, tiny_llama, data, steps=4, rounds=1, options=options, profiled=profiled)
    steps = {name: entries[0]["steps"] for name, entries in result.details["runs"].items()}
    assert {name: len(entries) for name, entries in steps.items()} == {
        "cera": 4, "cera_compiled": 4, "trl_packed": 4, "trainer": 6
    }  # fmt: skip
    assert steps["cera"][0]["positions"] <= 2 * 256
    assert result.details["padding_share"]["trl_packed"] == [0.0]
    assert result.details["padding_share"]["trainer"][0] > 0
    for entries in steps.values():
        times = [second for step in entries for second in (step["begin"], step["end"])]
        assert times == sorted(times)
        assert times[0] > 0
    profiles = result.details["profiles"]
    assert "aten::silu" in profiles["cera"]["operations"]
    assert COMPILED in profiles["cera_compiled"]["operations"]
    for entries in profiles.values():
        assert 0 < sum(entries["operations"].values()) < 2 * entries["seconds"]  # of two threads


@pytest.mark.slow
def test_each_contender_is_compared_at_its_best_and_by_default(tiny_llama, gsm8k):
    by_length = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 6}
    grid = {
        "cera": {"default": {}, "fp32": {"model.adapter_dtype": "float32"}},
        "trainer": {"default": {}, "by length, bf16": {**by_length, "adapter_dtype": "bfloat16"}},
        "trl": {
            "default": {},
            "by length": {**by_length, "adapter_dtype": "bfloat16", "gradient_checkpointing": False},
        },
        "authors": {"default": {}},
    }
    data = gsm8k / "train.jsonl"
    result = peers.compare(grid, tiny_llama, data, steps=4, rounds=1, r=4, batch_size=2, max_length=256)
    found, best = result.details["searched_tokens_per_second"], result.details["best"]
    assert {name: set(rates) for name, rates in found.items()} == {name: set(grid[name]) for name in grid}
    assert all(rates[best[name]] == max(rates.values()) for name, rates in found.items())
    whats = [row.what for row in result.rows]
    assert f"training, each at its best: tokens/s of CeRA / trainer: {best['trainer']}" in whats
    assert "training, each by default: tokens/s of CeRA / trl" in whats
    padding = result.details["padding_share"]
    assert padding["authors: default"][0] > padding["trainer: default"][0]  # rows are padded to max_length


def test_the_grid_of_the_peers_has_defaults_and_what_a_quick_run_searches() -> None:
    assert all(settings["default"] == {} for settings in peers.GRID.values())
    assert peers.QUICK.keys() == peers.GRID.keys()
    assert all(set(names) <= peers.GRID[name].keys() for name, names in peers.QUICK.items())


def test_imports_are_timed_by_package():
    import_times = startup.import_seconds("import json.tool, wave")
    assert import_times["json"] > 0
    assert import_times["wave"] > 0
    assert sum(import_times.values()) < 10
    assert "torch" not in import_times


@pytest.mark.slow
def test_the_start_is_measured_from_the_start_of_the_process(tiny_llama, gsm8k):
    options = ["--r", "4", "--batch_size", "1", "--max_length", "128"]
    result = startup.compare(tiny_llama, gsm8k / "train.jsonl", rounds=1, options=options)
    begun, ended = (result.details[key] for key in ("seconds_to_first_step", "seconds_to_its_end"))
    for name, imported in result.details["import_seconds"].items():
        assert imported["torch"] > 0
        assert 1 < begun[name][0] < ended[name][0]


@pytest.mark.slow
def test_the_tracker_is_measured_at_each_validation(tiny_llama):
    options = [f"--model.base={tiny_llama}", "--data.dataset.init_args.size=200"]
    result = tracking.measure(interval=50, measured_interval=2, validations=2, options=options)
    assert len(result.rows[0].ratios) == 2
    assert len(result.details["steps"]) == 4
    assert all(seconds > 0 for seconds in result.details["tracking"])
    assert 0 < result.details["logged"] < 1


def test_results_are_not_replaced_in_silence(tmp_path, capsys) -> None:
    file = tmp_path / "layer.quick.json"
    file.write_text("kept")
    assert main(["layer", "--quick", f"--results={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: {file} exists already; give other --results, or --overwrite.\n"
    assert main(["all", "--quick", f"--results={tmp_path}"]) == 2
    assert file.read_text() == "kept"
