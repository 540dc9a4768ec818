"""The records of an evaluation survive whatever stops the process."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from cera.evaluation.records import RecordError, Records, read


def record(key: str) -> dict:
    return {"key": key, "samples": ["a\u2028b\r\n\x85c"], "correct": [True]}


def test_what_is_appended_is_read_again_and_joined_in_order(tmp_path):
    first, second = Records(tmp_path, 0), Records(tmp_path, 1)
    for key in "ca":
        first.append(record(key))
    second.append(record("b"))
    assert first.finished() == {key: record(key) for key in "cab"}
    assert first.join(list("abc")) == [record(key) for key in "abc"]
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]
    assert second.finished().keys() == set("abc")
    assert Records(tmp_path, 3).join(list("cab")) == [record(key) for key in "cab"]  # once more, with nothing new


def test_a_missing_problem_is_named_and_nothing_is_lost(tmp_path):
    records = Records(tmp_path)
    records.append(record("a"))
    with pytest.raises(RecordError, match="lacks 1 of the problems, such as b"):
        records.join(["a", "b"])
    assert records.finished().keys() == {"a"}


@pytest.mark.parametrize("length", range(1, 40, 3))
def test_half_a_line_is_as_if_it_had_not_been_written(tmp_path, length):
    records = Records(tmp_path)
    records.append(record("a"))
    whole = records.rank_file.read_bytes()
    for before, expected in ((b"", set()), (whole, {"a"})):
        records.rank_file.write_bytes(before + whole[:length])
        assert records.finished().keys() == expected
        records.append(record("b"))
        assert records.finished().keys() == {*expected, "b"}


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "records-0.jsonl"
    file.write_text('{"key": "a"}\n[1]\n{"key": "b"}\n')
    with pytest.raises(RecordError, match=r"records-0\.jsonl, line 2"):
        read(file)


def test_killed_while_appending(tmp_path):
    script = (
        "import pathlib, sys\nfrom cera.evaluation.records import Records\n"
        "records = Records(pathlib.Path(sys.argv[1]))\nn = len(records.finished())\nprint(n, flush=True)\n"
        "while True:\n    records.append({'key': str(n), 'text': 'x' * 5000})\n    n += 1\n"
    )
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finished = Records(tmp_path).finished()
        assert len(finished) > 5
        assert list(finished) == [str(i) for i in range(len(finished))]
