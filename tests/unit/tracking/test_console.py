import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from promptmeup.tracking.console import Console, duration, progress_line, table
from tests.unit.tracking.terminal import Screen

METRICS = {
    "loss": 3.25,
    "loss/image_text": 2.5,
    "loss/matching": 0.75,
    "lr": 1e-4,
    "pairs_per_second": 812.4,
    "data_wait": 0.034,
}


@pytest.fixture(autouse=True)
def a_usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log_gets_plain_lines_now_and_then_and_the_last() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(total_steps=100, every_seconds=10, stream=stream, clock=clock)
    for step in range(1, 101):
        clock.now = float(step)
        console.step(step, METRICS)
    text = stream.getvalue()
    assert "\r" not in text
    steps = [int(line.split()[1].split("/")[0]) for line in text.splitlines()]
    assert steps == [*range(1, 101, 10), 100]


def test_progress_line_shows_terms_speed_wait_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(total_steps=2000, stream=stream, clock=clock)
    console.start(1000)  # a resumed run: what was done before says nothing about today's speed
    clock.now = 50.0
    console.step(1100, METRICS)
    assert stream.getvalue() == (
        "step 1100/2000  loss 3.2500 (image_text 2.500, matching 0.750)  lr 1.00e-04  812 pairs/s  "
        "data wait 3%  7:30 left\n"
    )


def test_log_line_shows_mfu_and_sentences() -> None:
    metrics = {"loss": 1.0, "pairs_per_second": 2357.0, "tflops": 421.7, "mfu": 0.4263}
    assert progress_line(1, metrics, total=9) == "step 1/9  loss 1.0000  2357 pairs/s  MFU 43% (422 TFLOP/s)"
    # a device whose peak is not known
    assert progress_line(1, {"tflops": 0.0123}, total=9) == "step 1/9  0.0123 TFLOP/s"
    assert progress_line(1, {"sentences_per_second": 31.0}, total=9) == "step 1/9  31 sentences/s"


def test_terminal_is_redrawn_in_place_and_other_lines_stand_above() -> None:
    stream, clock = Terminal(), Clock()
    console = Console(total_steps=2000, stream=stream, clock=clock)
    console.start(1000)
    for step in (1001, 1002):
        clock.now = step - 1000.0
        console.step(step, METRICS)
    console.line("evaluation after 1002 steps\n  r1\n----\n0.25")
    console.step(1003, METRICS)
    console.close()
    console.line("done")
    lines = Screen(80).feed(stream.getvalue()).lines
    assert lines[:4] == ["evaluation after 1002 steps", "  r1", "----", "0.25"]
    assert lines[4].startswith("step 1003/2000   ━")
    assert "50%" in lines[4]
    assert re.search(r"\d+:\d\d left, ends \d\d:\d\d$", lines[4])
    assert lines[5] == "loss 3.2500   image_text 2.500   matching 0.750"
    assert lines[6] == "lr 1.00e-04   812 pairs/s   data wait 3%"
    assert lines[7:] == ["done"]


@pytest.mark.parametrize("width", [20, 31, 47, 80, 200])
def test_narrow_terminals_lose_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    console = Console(total_steps=9, stream=stream)
    for step in (1, 2, 3):
        console.step(step, METRICS | {"loss/object_entity": 1.0, "tflops": 300.0, "mfu": 0.3})
    console.line("a line that is longer than a narrow terminal is wide, with /a/path/that/is/copied/whole")
    console.step(4, METRICS)
    console.close()
    shown = Screen(width).feed(stream.getvalue()).lines
    text = " ".join(" ".join(shown).split())
    assert text.count("step ") == 1
    assert "step 4/9" in text
    for part in ("loss 3.2500", "image_text 2.500", "matching 0.750", "812 pairs/s", "data wait 3%"):
        assert part in text
    assert "/a/path/that/is/copied/whole" in "".join(shown).replace(" ", "")


def test_prints_of_others_stand_above(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", errors)
    console = Console(total_steps=9)
    console.step(1, {"loss": 1.0})
    print("from a library")
    print("warning: [/bold] is no markup", file=sys.stderr)
    console.step(2, {"loss": 0.5})
    console.close()
    assert (sys.stdout, sys.stderr) == (stream, errors)
    lines = Screen(80).feed(stream.getvalue()).lines
    assert lines[:2] == ["from a library", "warning: [/bold] is no markup"]
    assert lines[2].startswith("step 2/9")
    assert errors.getvalue() == ""


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = Terminal()
    console = Console(total_steps=9, stream=stream, clock=Clock())
    console.step(1, {"loss": 1.0})
    assert stream.getvalue() == "step 1/9  loss 1.0000  0:00 left\n"


def test_cursor_is_never_hidden() -> None:
    stream = Terminal()
    console = Console(total_steps=9, stream=stream)
    console.step(1, {"loss": 1.0})
    console.close()
    assert "\x1b[?25l" not in stream.getvalue()


class Broken(io.StringIO):
    """Fails from its third write on."""

    def __init__(self, error: Exception, *, terminal: bool) -> None:
        super().__init__()
        self._error, self._terminal, self._writes = error, terminal, 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._writes += 1
        if self._writes > 2:
            raise self._error
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")]
)
def test_broken_stream_is_silent(error: Exception, terminal: bool) -> None:
    console = Console(total_steps=9, every_seconds=1e-9, stream=Broken(error, terminal=terminal))
    for step in range(1, 9):
        console.step(step, {"loss": 1.0})
        console.line("still here")
    console.close()


def test_closed_stream_is_silent() -> None:
    stream = Terminal()
    console = Console(total_steps=9, stream=stream)
    console.step(1, {"loss": 1.0})
    stream.close()
    console.step(2, {"loss": 1.0})
    console.line("still here")
    console.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminal_without_unicode(encoding: str, tmp_path: Path) -> None:
    file = (tmp_path / "terminal").open("w", encoding=encoding)
    monkey: Any = file
    monkey.isatty = lambda: True
    console = Console(total_steps=9, stream=file)
    console.step(1, {"loss": 1.0})
    console.step(2, {"loss": 0.5})
    console.close()
    file.close()
    assert "loss 0.5000" in (tmp_path / "terminal").read_text(encoding=encoding)


PROGRAM = """
import sys
from promptmeup.tracking.console import Console

console = Console(total_steps=3)
for step in (1, 2, 3):
    metrics = {"pairs_per_second": 100.0, "mfu": 0.4, "tflops": 9.0}
    console.step(step, {"loss": 1.0 / step, "loss/image_text": 0.5} | metrics)
    print(f"a print after step {step}")
    print(f"a warning after step {step}", file=sys.stderr)
console.close()
print("the end")
"""


def test_on_a_real_terminal() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 72))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment = {
        name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    received = b""
    try:
        while part := os.read(ours, 4096):
            received += part
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = Screen(72).feed(received.decode()).lines
    assert lines[:6] == [f"a {what} after step {step}" for step in (1, 2, 3) for what in ("print", "warning")]
    assert lines[6].startswith("step 3/3   ━━━━━━━━━━━━━━━━━━━━   100%")
    assert lines[7] == "loss 0.3333   image_text 0.500"
    assert lines[8] == "100 pairs/s   MFU 40% (9 TFLOP/s)"
    assert lines[9:] == ["the end"]


def test_table_aligns_and_duration_reads_like_a_clock() -> None:
    rows = [{"term": "image_text", "r1": 0.25}, {"term": "all", "r1": 12345.6, "n": None}]
    assert table(rows).splitlines() == [
        "term           r1  n",
        "----------  -----  -",
        "image_text   0.25  -",
        "all         12346  -",
    ]
    assert [duration(seconds) for seconds in (42, 3700)] == ["0:42", "1:01:40"]
