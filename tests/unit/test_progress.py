"""Progress in a log and on a terminal."""

import io

import pytest

from promptmeup.progress import Progress, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines_and_a_last_one() -> None:
    log = io.StringIO()
    with Progress("pack train", unit="images", total=30, every=0.0, stream=log) as bar:
        bar.advance(10)
        bar.advance(5, lost="2 pairs")
    lines = log.getvalue().splitlines()
    assert len(lines) == 2, "what was just said is not said again"
    assert lines[0].startswith("pack train: 10 of 30 images, ")
    assert lines[1].startswith("pack train: 15 of 30 images, ")
    assert lines[1].endswith(" images/s, lost 2 pairs")


def test_a_log_has_the_end_of_a_long_job() -> None:
    log = io.StringIO()
    with Progress("pack train", unit="images", total=30, every=1000.0, stream=log) as bar:
        bar.advance(10)
        bar.advance(5)
    assert log.getvalue().startswith("pack train: 15 of 30 images, ")


def test_a_short_job_prints_one_line() -> None:
    log = io.StringIO()
    with Progress("label", unit="shards", stream=log) as bar:
        bar.advance()
        bar.advance()
    assert log.getvalue().startswith("label: 2 shards, ")
    assert log.getvalue().count("\n") == 1


def test_a_terminal_gets_a_bar() -> None:
    terminal = Terminal()
    with Progress("pack val", unit="images", total=4, stream=terminal) as bar:
        bar.advance(4, lost=0)
    assert "pack val: 100%" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


def test_an_iterable_is_passed_on_and_its_length_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], what="read", unit="rows")) == [1, 2, 3]
    assert "read: 3 of 3 rows" in capsys.readouterr().err
    assert list(progress(iter("ab"), what="read", unit="rows")) == ["a", "b"]
    assert "read: 2 rows" in capsys.readouterr().err
