"""Long work says what it does: with a bar on a terminal; in a log with lines at its start and end, and now and then."""

import io
import re

import pytest

from cera import progress as module
from cera.progress import StatusBar, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(StatusBar, "monitor_interval", 0)
    return now


def lines_of_a_log(clock: list[float], items: int, seconds_each: float, **options) -> list[str]:
    log = io.StringIO()
    for _ in StatusBar(range(items), "held-out rows", "row", log, **options):
        clock[0] += seconds_each
    assert "\r" not in log.getvalue()
    assert log.getvalue() == "" or log.getvalue().endswith("\n")
    return log.getvalue().splitlines()


def test_a_log_has_a_line_at_the_start_one_in_half_a_minute_and_one_at_the_end(clock):
    lines = lines_of_a_log(clock, items=100, seconds_each=1.0)
    assert [int(re.search(r"(\d+)/100", line)[1]) for line in lines] == [0, 30, 60, 90, 100]
    assert all(line.startswith("held-out rows: ") for line in lines)


def test_short_work_has_two_lines_in_a_log(clock):
    assert len(lines_of_a_log(clock, items=5, seconds_each=0.1)) == 2


@pytest.mark.parametrize(("seconds_each", "expected"), [(0.1, []), (1.0, [30, 60, 90])])
def test_a_part_of_other_work_is_in_a_log_only_if_it_is_long(clock, seconds_each, expected):
    lines = lines_of_a_log(clock, items=100, seconds_each=seconds_each, leave=False)
    assert [int(re.search(r"(\d+)/100", line)[1]) for line in lines] == expected


def test_nothing_is_shown_where_it_is_disabled(clock):
    assert lines_of_a_log(clock, items=100, seconds_each=1.0, disable=True) == []


def test_a_terminal_has_a_bar(clock):
    terminal = Terminal()
    for _ in StatusBar(range(3), "held-out rows", "row", terminal):
        clock[0] += 2
    assert terminal.getvalue().count("\rheld-out rows: ") >= 3
    assert "3/3" in terminal.getvalue()


def test_the_function_writes_to_standard_error(capsys):
    assert list(progress([1, 2], "reading runs", "run")) == [1, 2]
    captured = capsys.readouterr()
    assert "reading runs: 100%" in captured.err
    assert captured.out == ""
    assert module.IN_LOG == 30
