"""A rank that goes ends the run in the journal of the others; `sync` takes the status from there."""

from pathlib import Path

from promptmeup.config import Config
from promptmeup.distributed.world import World, barrier
from promptmeup.tracking import journal
from promptmeup.tracking.settings import TrackingConfig
from promptmeup.tracking.tracker import Tracker
from tests.support.ranks import run_ranks


class Settings(Config):
    tracking: TrackingConfig = TrackingConfig(uri=None)


def _lose_a_rank(world: World, folder: Path) -> str:
    if not world.is_main:
        barrier(world)
        return "left"
    config = Settings()
    try:
        with Tracker(folder, config=config.tracking) as tracker:
            tracker.start(config=config, environment={})
            barrier(world)
            tracker.step(1, {"loss": 1.0})
            barrier(world)  # the other one has gone
    except RuntimeError as error:
        return str(error)
    return ""


def test_rank_that_goes_ends_the_run_as_failed(tmp_path: Path) -> None:
    error, left = run_ranks(_lose_a_rank, 2, tmp_path, timeout=60)
    assert left == "left" and error
    last = journal.read(tmp_path / "journal.jsonl")[-1]
    assert (last["event"], last["step"], last["status"]) == ("finish", 1, "FAILED")
