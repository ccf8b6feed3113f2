"""Damaged samples are reported, and too many of them stop the run."""

import json
from dataclasses import replace

import pytest

from promptmeup.data.damage import FIRST, report_to, watched
from promptmeup.errors import ShardError
from promptmeup.records import Substitute
from tests.unit.training.test_loop import batches

LOST = Substitute(7, "packed/shard-000003.tar", "00ff", 512, "not a readable image", "11ee")


def stream(damaged):
    """Batches of two pairs; those with a number in `damaged` have one substitute."""
    for number, batch in zip(range(10_000), batches(), strict=False):
        yield replace(batch, substitutes=(LOST,) if number in damaged else ())


def test_every_substitute_is_reported(tmp_path):
    said = []
    report = report_to(tmp_path / "run/damaged.jsonl", rank=3, warn=said.append)
    assert len(list(watched(stream({1, 5}), limit=0.001, report=report))) == 10_000
    lines = [json.loads(line) for line in (tmp_path / "run/damaged.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0] == {
        "position": 7,
        "shard": "packed/shard-000003.tar",
        "key": "00ff",
        "offset": 512,
        "reason": "not a readable image",
        "by": "11ee",
        "rank": 3,
    }
    assert said[0] == (
        "packed/shard-000003.tar, byte 512, key 00ff: not a readable image; photo 11ee is shown instead"
    )


def test_a_full_disk_costs_the_report_and_not_the_run(tmp_path):
    said = []
    (tmp_path / "damaged.jsonl").symlink_to("/dev/full")
    report = report_to(tmp_path / "damaged.jsonl", rank=0, warn=said.append)
    report(LOST)
    assert said[0].endswith("damaged.jsonl: No space left on device; training goes on")
    assert "not a readable image" in said[1]


@pytest.mark.parametrize(("limit", "allowed"), [(0.0, 0), (0.001, 10), (0.01, 100)])
def test_more_than_the_limit_stops(limit, allowed):
    seen = []
    running = watched(stream(set(range(1000))), limit=limit, report=seen.append)
    message = rf"{allowed + 1} of {2 * allowed + 2} samples .* data.max_damaged = {limit:g}"
    with pytest.raises(ShardError, match=message):
        list(running)
    assert len(seen) == allowed + 1


def test_the_limit_is_a_rate():
    # one in 200 pairs for ever: above 0.1 %, once more than the first pairs are read
    running = watched(stream(set(range(0, 10_000, 100))), limit=0.006, report=lambda _: None)
    assert sum(len(batch) for batch in running) == 20_000
    with pytest.raises(ShardError, match="damaged, more than"):
        list(watched(stream(set(range(0, 10_000, 100))), limit=0.004, report=lambda _: None))
    assert FIRST == 10_000
