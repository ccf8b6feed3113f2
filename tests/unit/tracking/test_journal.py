import contextlib
import json
import math
from pathlib import Path

import pytest

from promptmeup.tracking import journal
from promptmeup.tracking.journal import Journal


def test_every_line_is_json_and_on_disk_at_once(tmp_path: Path) -> None:
    book = Journal(tmp_path / "run" / "journal.jsonl")
    book.write("start", step=0, environment={"host": "a", "loss": math.nan})
    book.write("step", step=1, loss=0.5)
    lines = book.path.read_text().splitlines()  # not closed: a kill now loses nothing
    assert [json.loads(line)["event"] for line in lines] == ["start", "step"]
    assert json.loads(lines[0])["environment"] == {"host": "a", "loss": "NaN"}


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.write("step", step=1, a=math.nan, b=math.inf, c=-math.inf, d=2)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(book.path.read_text(), parse_constant=refuse)
    found = journal.metrics(book.path)[1]
    assert math.isnan(found["a"])
    assert (found["b"], found["c"], found["d"]) == (math.inf, -math.inf, 2.0)


def test_half_line_of_a_killed_run_is_skipped_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = Journal(path)
    book.write("step", step=1, loss=3.0)
    book.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert [entry["step"] for entry in journal.read(path)] == [1]
        again = Journal(path)
        again.write("step", step=2, loss=2.0)
        again.close()
        steps = [entry["step"] for entry in journal.read(path)]
        # the last cut left out the newline alone: that line is whole once it is closed
        assert steps == ([1, 1, 2] if cut == len(whole) - 1 else [1, 2])


def test_resumed_run_supersedes_later_steps(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    for step in range(1, 8):
        book.write("step", step=step, loss=float(step))
    book.write("evaluation", step=6, r1=0.6)
    book.write("resume", step=4)
    book.write("step", step=5, loss=50.0)
    assert journal.metrics(book.path) == {n: {"loss": float(n)} for n in (1, 2, 3, 4)} | {5: {"loss": 50.0}}
    assert journal.metrics(book.path, event="evaluation") == {}


def test_two_evaluations_of_one_step_are_joined(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.write("evaluation", step=6, r1=0.6)
    book.write("evaluation", step=6, r5=0.9)
    assert journal.metrics(book.path, event="evaluation") == {6: {"r1": 0.6, "r5": 0.9}}


def test_full_disk_warns_once_and_raises_nothing(tmp_path: Path, capsys) -> None:
    path = tmp_path / "journal.jsonl"
    path.symlink_to("/dev/full")
    book = Journal(path)
    book.write("step", step=1, loss=1.0)
    book.write("step", step=2, loss=1.0)
    assert capsys.readouterr().err.count("No space left") == 1


def test_full_disk_below_standard_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    path.symlink_to("/dev/full")
    book = Journal(path)
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        book.write("step", step=1, loss=1.0)
        with contextlib.suppress(OSError):
            full.close()
