import math
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import STRATEGIES, command, environment, losses, run, start_and_signal
from conftest import REPOSITORY
from fitting import fit
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written_runs import CERA, LORA, write_run

from cera.callbacks import LRRobustness
from cera.runs.finished import FinishedRun, RunError, find_runs
from cera.studies.lr_robustness import format_learning_rate, mean_distance, read_study, robustness_by_adapter
from cera.studies.lr_robustness_command import main, robustness_table
from cera.studies.lr_robustness_figure import figure

COMMAND = "import sys; from cera.studies.lr_robustness_command import main; sys.exit(main(sys.argv[1:]))"
COLUMNS = ("final_ppl_spread", "area_between_curves", "share_within_1_percent", "divergences")


def write_grid(runs: Path) -> None:
    """CeRA at four learning rates, of which one diverged, one with two seeds, one not ended; LoRA at one."""
    write_run(runs / "a", CERA, 1e-4, {0: 9.0, 50: 5.0, 100: 4.0})
    write_run(runs / "b", CERA, 3e-4, {0: 9.0, 50: 4.0, 100: 3.0}, seed=1)
    write_run(runs / "c", CERA, 3e-4, {0: 9.0, 50: 4.0, 100: 3.02}, seed=2)
    write_run(runs / "d", CERA, 5e-4, {0: 9.0, 50: 3.0, 100: 3.03})
    write_run(runs / "e", CERA, 1e-3, {0: 9.0, 50: math.nan})
    write_run(runs / "f", CERA, 7e-4, {0: 9.0, 50: 2.0})
    write_run(runs / "g", LORA, 1e-4, {0: 9.0, 50: 5.0, 100: 4.5})
    write_run(runs / "h", CERA, 1e-4, {0: 9.0, 10: 1.0}, max_steps=10)  # of another study
    (runs / "broken").mkdir()
    (runs / "broken" / "config.yaml").write_bytes(b"\xff\xfe model: {")
    (runs / "events.out").write_text("not a directory")


def test_numbers_by_hand(tmp_path):
    write_grid(tmp_path)
    this_run, runs = read_study(tmp_path / "a")
    assert [r.name for r in runs] == list("abcdefg")
    cera, lora = robustness_by_adapter(runs).values()
    assert robustness_by_adapter(runs)[this_run.identity.adapter] == cera
    assert (cera.label, lora.label) == ("CeRA r=64", "LoRA r=64")
    assert list(cera.curves) == [1e-4, 3e-4, 5e-4, 7e-4, 1e-3]
    assert cera.final_perplexity == pytest.approx({1e-4: 4.0, 3e-4: 3.01, 5e-4: 3.03})
    assert cera.best == 3e-4
    assert (cera.spread, cera.area_over_rates, cera.area_between_curves) == (math.inf,) * 3
    assert cera.diverged == [1e-3]
    assert cera.divergences == 1
    assert cera.share_within == pytest.approx(2 / 4)  # 3.03 is within 1% of 3.01; one is at 4.0, one diverged
    assert (lora.spread, lora.area_between_curves, lora.share_within, lora.divergences) == (None, None, None, 0)
    assert lora.final_perplexity == {1e-4: 4.5}


def test_numbers_of_rates_that_all_ended_by_hand(tmp_path):
    write_grid(tmp_path)
    shutil.rmtree(tmp_path / "e")
    result = next(iter(robustness_by_adapter(read_study(tmp_path / "a")[1]).values()))
    assert result.spread == pytest.approx(0.99)
    # widest at step 50, 5 - 3; at 100 it is 4 - 3.01; 3e-4 falls below 5e-4 on the way, at 50 + 50 * 1 / 1.02
    crossing = 50 / 1.02
    gap_there = (5 - crossing / 50) - (3 + 0.03 * crossing / 50)
    area = 50 * (0 + 2) / 2 + crossing * (2 + gap_there) / 2 + (50 - crossing) * (gap_there + 0.99) / 2
    assert result.area_between_curves == pytest.approx(area / 100, rel=1e-12)
    # at 1e-4, 3e-4 and 5e-4 it is 0.99, 0 and 0.02 above the best
    first, second = math.log(3), math.log(5 / 3)
    assert result.area_over_rates == pytest.approx((0.99 * first / 2 + 0.02 * second / 2) / math.log(5), rel=1e-12)


def test_a_diverged_rate_never_improves_a_figure(tmp_path):
    """Whatever the perplexity with which it could have ended instead."""
    for name, learning_rate, final in (("a", 1e-4, 4.0), ("b", 3e-4, 3.0)):
        write_run(tmp_path / name, CERA, learning_rate, {0: 9.0, 50: 6.0, 100: final})
    alone = one_adapter(tmp_path)
    write_run(tmp_path / "ended", CERA, 1e-3, {0: 9.0, 50: 7.0, 100: 2e5})
    ended = one_adapter(tmp_path)
    shutil.rmtree(tmp_path / "ended")
    write_run(tmp_path / "diverged", CERA, 1e-3, {0: 9.0, 50: 7.0, 100: math.nan})
    diverged = one_adapter(tmp_path)
    for figure_name in ("spread", "area_over_rates", "area_between_curves"):
        values = [getattr(result, figure_name) for result in (alone, ended, diverged)]
        assert 0 < values[0] < values[1] <= values[2], figure_name
    assert diverged.share_within <= ended.share_within


def one_adapter(runs: Path):
    (result,) = robustness_by_adapter(find_runs(runs)).values()
    return result


def test_more_rates_near_one_end_do_not_move_the_area(tmp_path):
    """Final perplexity is a line over the log rate, whichever rates are drawn from it."""
    for name, rates in (("even", (1e-5, 1e-4, 1e-3)), ("crowded", (1e-5, 1e-4, 3e-4, 5e-4, 7e-4, 1e-3))):
        for learning_rate in rates:
            final = 5.0 + math.log10(learning_rate)
            write_run(tmp_path / name / str(learning_rate), CERA, learning_rate, {0: 9.0, 100: final})
        assert one_adapter(tmp_path / name).area_over_rates == pytest.approx(1.0)


def test_grids_that_are_not_alike_are_said(tmp_path, capsys):
    write_grid(tmp_path / "runs")
    assert main([str(tmp_path / "runs" / "a"), "--out", str(tmp_path / "out.png")]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: the adapters were not trained at the same learning rates, so their figures do not compare.",
        "note: CeRA r=64: learning rates are unevenly spaced, and `within 1%` counts rates.",
        "note: CeRA r=64: no run at 7e-4 has ended, so its figures are without.",
        "note: CeRA r=64: some learning rates have more replicates than others.",
    ]
    for name, adapter in (("cera", CERA), ("lora", LORA)):
        for learning_rate in (1e-4, 3e-4, 1e-3):
            write_run(tmp_path / "even" / f"{name}{learning_rate}", adapter, learning_rate, {0: 9.0, 100: 3.0})
    assert main([str(tmp_path / "even")]) == 0
    assert "note:" not in capsys.readouterr().out


def test_a_learning_rate_with_one_diverged_replicate_is_not_a_good_one(tmp_path):
    write_run(tmp_path / "a", CERA, 1e-4, {0: 9.0, 100: 3.0})
    write_run(tmp_path / "b", CERA, 3e-4, {0: 9.0, 100: 3.0}, seed=1)
    write_run(tmp_path / "c", CERA, 3e-4, {0: 9.0, 50: math.inf}, seed=2)
    (result,) = robustness_by_adapter(find_runs(tmp_path)).values()
    assert result.final_perplexity == {1e-4: 3.0}
    assert (result.share_within, result.divergences, result.spread) == (0.5, 1, math.inf)


def test_all_diverged(tmp_path):
    for name, learning_rate in (("a", 1e-3), ("b", 1e-2)):
        write_run(tmp_path / name, CERA, learning_rate, {0: 9.0, 50: math.nan})
    (result,) = robustness_by_adapter(find_runs(tmp_path)).values()
    assert (result.share_within, result.divergences, result.best, result.spread) == (0.0, 2, None, math.inf)
    figure([result])


def test_mean_distance_is_exact_for_lines_that_cross():
    assert mean_distance([[{0: 0.0, 10: 10.0}], [{0: 10.0, 10: 0.0}]]) == pytest.approx(5.0)
    assert mean_distance([[{0: 9.0, 10: 2.0}], [{10: 1.0, 20: 1.0}]]) is None  # no steps in common
    assert mean_distance([[{0: 9.0, 10: 2.0}]]) is None
    assert mean_distance([]) is None
    assert mean_distance([[{0: 4.0, 10: 4.0}], [{0: 3.0, 5: 3.0, 20: 0.0}]]) == pytest.approx(1 + 0.25)
    assert mean_distance([[{0: 1.0, 9: 1.0}], [{0: 2.0, 9: 2.0}, {0: 4.0, 9: 6.0}]]) == pytest.approx(2.5)


def test_mean_distance_against_a_fine_grid():
    rng = random.Random(0)
    curves = [[{step: rng.uniform(2, 9) for step in sorted(rng.sample(range(100), 9))}] for _ in range(5)]
    start, end = max(min(c) for [c] in curves), min(max(c) for [c] in curves)
    steps = np.linspace(start, end, 200_001)
    values = [np.interp(steps, list(c), list(c.values())) for [c] in curves]
    assert mean_distance(curves) == pytest.approx(np.ptp(values, axis=0).mean(), rel=1e-5)


@pytest.mark.parametrize(("value", "text"), [(1e-4, "1e-4"), (3.5e-4, "3.5e-4"), (3 * 1e-4, "3e-4"), (2.0, "2e0")])
def test_learning_rates_are_written_as_in_papers(value, text):
    assert format_learning_rate(value) == text


# The figure


def panels(runs: Path) -> dict[str, object]:
    return {panel.get_title(): panel for panel in figure(robustness_by_adapter(find_runs(runs)).values()).axes}


def test_a_panel_for_each_learning_rate_with_a_curve_for_each_run_and_one_of_final_perplexities(tmp_path):
    write_grid(tmp_path)
    shutil.rmtree(tmp_path / "h")
    made = panels(tmp_path)
    titles = [f"Learning rate {lr}" for lr in ("1e-4", "3e-4", "5e-4", "7e-4", "1e-3")]
    assert list(made) == [*titles, "After training"]
    first, second = made["Learning rate 1e-4"].lines
    np.testing.assert_array_equal(first.get_xydata(), [(0, 9.0), (50, 5.0), (100, 4.0)])
    np.testing.assert_array_equal(second.get_xydata(), [(0, 9.0), (50, 5.0), (100, 4.5)])
    assert first.get_color() != second.get_color()
    assert len(made["Learning rate 3e-4"].lines) == 2  # replicates
    assert made["Learning rate 7e-4"].lines[0].get_linestyle() == "--"  # not ended
    finals, crosses, *_ = made["After training"].lines
    np.testing.assert_allclose(finals.get_xydata(), [(1e-4, 4.0), (3e-4, 3.01), (5e-4, 3.03)])
    assert list(crosses.get_xdata()) == [1e-3]
    assert made["After training"].get_xscale() == "log"
    assert len({panel.get_ylim() for title, panel in made.items() if title in titles}) == 1


def test_an_untrained_or_diverged_model_does_not_squash_the_trained_ones(tmp_path):
    write_run(tmp_path / "a", CERA, 1e-4, {0: 65_000.0, 50: 4.2, 100: 4.0})
    write_run(tmp_path / "b", CERA, 3e-4, {0: 65_000.0, 50: 4.1, 100: 3.9})
    write_run(tmp_path / "c", CERA, 1e-2, {0: 65_000.0, 50: 1e9, 100: math.nan})
    for panel in list(panels(tmp_path).values())[:-1]:
        low, high = panel.get_ylim()
        assert 3.8 < low < 3.9
        assert 4.2 < high < 4.3
        assert panel.texts[0].get_text() == "base: 65,000"


def test_a_base_near_the_others_is_within_the_panels(tmp_path):
    write_run(tmp_path / "a", CERA, 1e-4, {0: 3.72, 50: 3.1, 100: 2.76})
    low, high = panels(tmp_path)["Learning rate 1e-4"].get_ylim()
    assert low < 2.76 < 3.72 < high


def test_perplexities_orders_of_magnitude_apart_are_on_a_log_scale(tmp_path):
    write_run(tmp_path / "a", CERA, 1e-4, {0: 65_000.0, 50: 9_000.0, 100: 400.0})
    assert panels(tmp_path)["Learning rate 1e-4"].get_yscale() == "log"


def test_of_many_learning_rates_some_have_panels_and_all_are_in_the_last(tmp_path):
    for i in range(30):
        write_run(tmp_path / str(i), CERA, 1e-5 * 1.2**i, {0: 9.0, 100: 4.0})
    made = figure(robustness_by_adapter(find_runs(tmp_path)).values())
    assert len(made.axes) == 12
    assert made.get_suptitle() == "11 of 30 learning rates"
    assert len(made.axes[-1].lines[0].get_xdata()) == 30


# The command


def test_the_command_prints_a_row_for_each_adapter_and_saves_the_figure(tmp_path, capsys):
    write_grid(tmp_path / "runs")
    assert main([str(tmp_path / "runs" / "a"), "--out", str(tmp_path / "out.png")]) == 0
    printed = capsys.readouterr().out
    _, _, header, _, cera, lora, _, *_ = printed.splitlines()
    assert header.split() == [
        "adapter", "1e-4", "3e-4", "5e-4", "7e-4", "1e-3", "rates", "best", "at", "spread", "area", "over", "log",
        "rate", "area", "over", "steps", "within", "1%", "diverged",
    ]  # fmt: skip
    assert " ".join(cera.split()).startswith("CeRA r=64 4.000 3.010 3.030 not ended diverged 5 3.010 3e-4 inf inf inf ")
    assert cera.split()[-2:] == ["50%", "1"]
    assert lora.split() == ["LoRA", "r=64", "4.500", "-", "-", "-", "-", "1", "4.500", "1e-4", "-", "-", "-", "-", "0"]
    assert f"figure: {tmp_path / 'out.png'}" in printed.splitlines()
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 1000


def test_several_studies_in_a_directory_have_a_table_and_a_figure_each(tmp_path, capsys):
    write_grid(tmp_path)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("adapter ") == 2
    assert {p.name for p in tmp_path.glob("*.png")} == {"lr_robustness.png", "lr_robustness-2.png"}
    assert robustness_table(robustness_by_adapter([FinishedRun.read(tmp_path / "h")]).values()) in printed


def test_mistakes_are_one_line(tmp_path, capsys):
    write_run(tmp_path / "runs" / "new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("model: 1")
    write_run(tmp_path / "good" / "a", curve={0: 9.0})
    (tmp_path / "a.png").touch()
    for arguments, message in (
        (["nowhere"], "nowhere"),
        (["empty"], "is no run directory and contains none"),
        (["broken"], "names no model.adapter"),
        (["runs"], "no run has a validation perplexity yet"),
        (["good", "--out", "a.docx"], "docx"),
        (["good", "--out", "a.png"], "a.png exists already"),
    ):
        given = [str(tmp_path / arguments[0]), *arguments[1:2], *(str(tmp_path / a) for a in arguments[2:])]
        assert main(given) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err


# The callback, in real runs


def lr_run(base: str, runs: Path, name: str, learning_rate: float, *more: str, with_it: bool = True) -> str:
    callback = ["--trainer.callbacks+=callbacks.LRRobustness"] if with_it else []
    rate = f"--model.learning_rate={learning_rate}"
    return run(command(base, runs, "--trainer.num_sanity_val_steps=-1", *callback, f"--name={name}", rate, *more))


@pytest.fixture(scope="module")
def grid(tiny_llama, tmp_path_factory):
    """Two learning rates and a second seed, one after the other, among directories that are no runs."""
    runs = tmp_path_factory.mktemp("grid")
    (runs / "broken").mkdir()
    (runs / "broken" / "config.yaml").write_bytes(b"\xff\xfe")
    write_run(runs / "other_study", CERA, 1.0, {0: 1.0, 100: 1.0})
    lr_run(tiny_llama, runs, "low", 0.001)
    shutil.copy(runs / "low" / "lr_robustness.png", runs / "alone.png")
    lr_run(tiny_llama, runs, "high", 0.01)
    lr_run(tiny_llama, runs, "seed", 0.01, "--seed_everything=7")
    return runs


def test_one_run_alone_has_a_figure_and_counts_divergences(grid):
    assert losses(grid / "low", "lr_robustness/divergences") == {3: 0.0, 7: 0.0}
    assert not any(losses(grid / "low", f"lr_robustness/{column}") for column in COLUMNS[:3])
    with Image.open(grid / "alone.png") as image:
        assert np.asarray(image).std() > 0


def test_numbers_come_with_the_second_run_and_with_its_last_validation(grid):
    low, high = (FinishedRun.read(grid / name).curve("val/perplexity") for name in ("low", "high"))
    assert sorted(low) == sorted(high) == [0, 4, 8]
    assert low[0] == high[0]
    logged = {column: losses(grid / "high", f"lr_robustness/{column}") for column in COLUMNS}
    gaps = [abs(low[step] - high[step]) for step in (0, 4, 8)]
    assert logged["final_ppl_spread"] == {7: pytest.approx(gaps[2])}
    assert logged["area_between_curves"] == {7: pytest.approx((4 * gaps[1] / 2 + 4 * (gaps[1] + gaps[2]) / 2) / 8)}
    assert logged["share_within_1_percent"] == {7: 0.5}
    assert logged["divergences"] == {3: 0.0, 7: 0.0}


def test_a_run_with_another_seed_is_a_replicate(grid):
    _, runs = read_study(grid / "seed")
    (result,) = robustness_by_adapter(runs).values()
    assert {lr: len(curves) for lr, curves in result.curves.items()} == {0.001: 1, 0.01: 2}
    finals = [FinishedRun.read(grid / name).curve("val/perplexity")[8] for name in ("high", "seed")]
    assert finals[0] != finals[1]
    assert result.final_perplexity[0.01] == pytest.approx(sum(finals) / 2)
    low = FinishedRun.read(grid / "low").curve("val/perplexity")[8]
    at_first_validation = abs(low - finals[0])  # of the two runs that had ended
    logged = losses(grid / "seed", "lr_robustness/final_ppl_spread")
    assert logged == pytest.approx({3: at_first_validation, 7: result.spread})


def test_tensorboard_has_the_panels_and_the_numbers(grid):
    events = EventAccumulator(str(grid / "high"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert [image.step for image in events.Images("lr_robustness/panels")] == [4, 8]
    assert [scalar.step for scalar in events.Scalars("lr_robustness/divergences")] == [3, 7]


def test_no_number_of_the_training_changes(tiny_llama, tmp_path, grid):
    lr_run(tiny_llama, tmp_path, "high", 0.01, with_it=False)
    for column in ("train/loss", "train/learning_rate", "val/perplexity"):
        assert losses(tmp_path / "high", column) == losses(grid / "high", column) != {}
    assert not (tmp_path / "high" / "lr_robustness.png").exists()


def test_a_killed_run_goes_on_and_sees_what_happened_beside_it_meanwhile(tiny_llama, tmp_path):
    arguments = command(tiny_llama, tmp_path, "--trainer.callbacks+=callbacks.LRRobustness", "--trainer.max_steps=30")
    status, printed = start_and_signal(arguments, tmp_path / "test", 10, signal.SIGKILL)
    assert status == -signal.SIGKILL, printed
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "diverged.json").write_text('{"reason": "train/loss is nan"}')
    config = (tmp_path / "test" / "config.yaml").read_text()
    (tmp_path / "beside" / "config.yaml").write_text(config.replace("learning_rate: 0.01", "learning_rate: 0.1"))
    with (tmp_path / "test" / "metrics.csv").open("a") as file:
        file.write("0,")  # a line that was cut off
    run([*arguments, "--ckpt_path=last"])
    counted = losses(tmp_path / "test", "lr_robustness/divergences")
    assert list(counted) == [*range(3, 29, 4), 29]
    assert (counted[3], counted[29]) == (0.0, 1.0)
    assert losses(tmp_path / "test", "lr_robustness/share_within_1_percent") == {29: 0.5}


def test_a_run_that_diverged_is_counted_by_itself_and_by_the_next(tiny_llama, tmp_path):
    guard = "--trainer.callbacks+=cera.callbacks.DivergenceGuard"
    bad = "--trainer.callbacks+=probes.BadBatch"
    arguments = command(
        tiny_llama, tmp_path, "--trainer.callbacks=null", "--trainer.callbacks+=callbacks.LRRobustness", guard, bad,
        "--trainer.callbacks.init_args.step=5", "--name=bad",
    )  # fmt: skip
    run(arguments, expect=3)
    assert losses(tmp_path / "bad", "lr_robustness/divergences") == {3: 0.0, 4: 1.0}
    lr_run(tiny_llama, tmp_path, "good", 0.001)
    assert losses(tmp_path / "good", "lr_robustness/divergences") == {3: 1.0, 7: 1.0}
    assert losses(tmp_path / "good", "lr_robustness/share_within_1_percent") == {7: 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_with_two_processes_the_first_one_writes(tiny_llama, tmp_path, strategy):
    options = [*STRATEGIES[strategy], "--trainer.devices=2", "--trainer.precision=bf16-true"]
    lr_run(tiny_llama, tmp_path, "a", 0.01, *options)
    assert losses(tmp_path / "a", "lr_robustness/divergences") == {3: 0.0, 7: 0.0}
    assert robustness_by_adapter(read_study(tmp_path / "a")[1]).popitem()[1].final_perplexity.keys() == {0.01}
    assert (tmp_path / "a" / "lr_robustness.png").exists()


def test_validate_draws_and_logs_nothing(tiny_llama, tmp_path, grid):
    shutil.copytree(grid / "low", tmp_path / "low")
    (tmp_path / "low" / "lr_robustness.png").unlink()
    before = (tmp_path / "low" / "metrics.csv").read_bytes()
    arguments = command(tiny_llama, tmp_path, "--trainer.callbacks+=callbacks.LRRobustness", "--name=low")
    run([*arguments[:2], "validate", *arguments[2:], "--model.learning_rate=0.001", "--ckpt_path=last"])
    assert not (tmp_path / "low" / "lr_robustness.png").exists()
    assert (tmp_path / "low" / "metrics.csv").read_bytes() == before


def test_without_a_run_directory_it_refuses_before_training(tiny_llama, tmp_path):
    with pytest.raises(RunError, match=f"{tmp_path} is not a run directory"):
        fit(tiny_llama, tmp_path, [LRRobustness()])


def test_a_directory_that_cannot_be_written_costs_a_warning_and_not_the_run(tiny_llama, tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / ".lr_robustness.png.unfinished").mkdir()  # in the way of the figure
    with pytest.warns(UserWarning, match="LRRobustness was not updated"):
        _, _, trainer = fit(tiny_llama, folder, [LRRobustness()])
    assert trainer.global_step == 4


def test_the_module_runs_as_a_command(tmp_path):
    write_grid(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path / "a")],
        capture_output=True, text=True, env=environment(), check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert "CeRA r=64" in done.stdout
    assert (tmp_path / "a" / "lr_robustness.png").exists()
