"""The stall meter's verdicts."""

import pytest

from promptmeup.training.stall import StallMeter


def test_a_slow_start_is_no_verdict_and_a_verdict_is_said_once() -> None:
    meter = StallMeter(workers=1, cores=8, ranks=2)
    shares = (0.9, 0.0, 0.5, 0.4, 0.4, 0.01, 0.3, 0.2)
    said = [meter.note(share, 10.0) for share in shares]
    assert [line is not None for line in said] == [False, False, False, True, False, False, False, True]
    assert said[3] == "data-bound: 40% of the time waiting for data; raise data.workers (now 1)"


def test_the_whole_run_is_weighted_by_time() -> None:
    meter = StallMeter(workers=2, cores=4, ranks=1)
    meter.note(1.0, 1.0)
    meter.note(0.0, 99.0)
    assert meter.share == pytest.approx(0.01)
    assert meter.verdict() == "compute-bound: 1% of the time waiting for data"


def test_taken_cores_are_said() -> None:
    meter = StallMeter(workers=3, cores=8, ranks=2)
    assert meter.verdict(0.5) == (
        "data-bound: 50% of the time waiting for data; all 8 cores are taken by 2 x (1 + data.workers = 3) "
        "processes: give each rank more cores, or pack smaller photos (shorter_side)"
    )
    assert "raise data.workers (now 0)" in StallMeter(workers=0, cores=1, ranks=1).verdict(0.5)


def test_nothing_noted_is_no_stall() -> None:
    assert (
        StallMeter(workers=1, cores=2, ranks=1).verdict() == "compute-bound: 0% of the time waiting for data"
    )
