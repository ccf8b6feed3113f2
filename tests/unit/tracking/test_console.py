import io

from promptmeup.tracking.console import Console, duration, table

METRICS = {
    "loss": 3.25,
    "loss/image_text": 2.5,
    "loss/matching": 0.75,
    "lr": 1e-4,
    "pairs_per_second": 812.4,
    "data_wait": 0.034,
}


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


def test_terminal_redraws_one_line_and_keeps_other_lines() -> None:
    stream = Terminal()
    console = Console(total_steps=9, stream=stream)
    console.step(1, {"loss": 1.0})
    console.step(2, {"loss": 0.5})
    console.line("saved")
    console.step(3, {"loss": 0.5})
    console.close()
    redrawn = stream.getvalue().split("\r\x1b[K")
    steps = [text.split("  ")[0] for text in redrawn]
    assert steps == ["", "step 1/9", "step 2/9", "saved\n", "step 3/9"]
    assert [text.endswith("\n") for text in redrawn] == [False, False, False, True, True]


def test_broken_pipe_is_silent() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(total_steps=9, stream=Broken())
    console.step(1, {"loss": 1.0})
    console.line("still here")


def test_table_aligns_and_duration_reads_like_a_clock() -> None:
    rows = [{"term": "image_text", "r1": 0.25}, {"term": "all", "r1": 12345.6, "n": None}]
    assert table(rows).splitlines() == [
        "term           r1  n",
        "----------  -----  -",
        "image_text   0.25  -",
        "all         12346  -",
    ]
    assert [duration(seconds) for seconds in (42, 3700)] == ["0:42", "1:01:40"]
