"""Lanes take turns, and each has for itself what a process has once."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from cera.runs.lanes import Lane
from cera.runs.signals import pass_on, stop_signals


def test_lanes_take_turns_with_a_state_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHARED", "outside")

    def work(lane: Lane) -> int:
        torch.manual_seed(int(lane.name))
        np.random.seed(int(lane.name))
        random.seed(int(lane.name))
        os.environ["SHARED"] = lane.name
        torch.set_default_dtype(torch.float64 if lane.name == "1" else torch.bfloat16)
        drawn = []
        for step in range(3):
            print(f"step {step}")
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
            assert lane.ask(step) == step + 10
            assert os.environ["SHARED"] == lane.name
            assert torch.empty(0).dtype == (torch.float64 if lane.name == "1" else torch.bfloat16)
        torch.manual_seed(int(lane.name))
        np.random.seed(int(lane.name))
        random.seed(int(lane.name))
        assert drawn == [(torch.rand(1).item(), np.random.rand(), random.random()) for _ in range(3)]
        return int(lane.name)

    lanes = [Lane(name, work, tmp_path / f"{name}.log") for name in ("1", "2")]
    outside = torch.random.get_rng_state()
    for lane in lanes:
        assert lane.resume()
    for step in range(3):
        for lane in lanes:
            assert lane.request == step
            assert lane.resume(step + 10) == (step < 2)
    assert [lane.status for lane in lanes] == [1, 2]
    assert os.environ["SHARED"] == "outside"
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert (tmp_path / "1.log").read_text() == (tmp_path / "2.log").read_text() == "step 0\nstep 1\nstep 2\n"


def test_random_numbers_of_a_lane_that_waits_are_drawn_for_it() -> None:
    def work(lane: Lane) -> int:
        torch.manual_seed(5)
        first = torch.rand(1)
        second = lane.ask("draw")
        third = torch.rand(1)
        torch.manual_seed(5)
        return int(torch.equal(torch.cat([first, second, third]), torch.rand(3)))

    lane = Lane("one", work)
    lane.resume()
    with lane.random_numbers():
        second = torch.rand(1)
    lane.resume(second)
    assert lane.status == 1


def test_an_error_ends_its_lane_alone(capsys) -> None:
    def work(lane: Lane) -> int:
        with pytest.raises(KeyError):
            lane.ask("a reply")
        raise RuntimeError("of one lane")

    lane = Lane("one", work)
    lane.resume()
    assert not lane.resume(KeyError("as a reply"))
    assert lane.status == 1
    assert "RuntimeError: of one lane" in capsys.readouterr().err


def test_a_signal_that_is_passed_on_reaches_the_innermost_receiver_of_each_lane() -> None:
    received = []

    def careful(lane: Lane) -> int:
        with stop_signals(received.append):
            lane.ask("first")
            lane.ask("second")
        return 7

    def careless(lane: Lane) -> int:
        lane.ask("first")
        return 0

    lanes = [Lane("careful", careful), Lane("careless", careless), Lane("late", careless)]
    lanes[0].resume()
    lanes[1].resume()
    try:
        with stop_signals(pass_on):
            os.kill(os.getpid(), signal.SIGTERM)
        assert lanes[0].resume()
        assert not lanes[0].resume()
        assert not lanes[1].resume()
        assert not lanes[2].resume()
    finally:
        pass_on(None)
    assert received == [signal.SIGTERM]
    assert [lane.status for lane in lanes] == [7, 128 + signal.SIGTERM, 128 + signal.SIGTERM]
