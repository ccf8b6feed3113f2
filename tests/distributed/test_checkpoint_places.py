"""Checkpoints as several nodes see them: what one of them cannot see is not damaged."""

import errno
import json
from pathlib import Path

import pytest

from promptmeup.distributed.world import World
from promptmeup.errors import CheckpointError
from promptmeup.records import RunState
from promptmeup.training import checkpoint
from tests.support.ranks import RankError, run_ranks

ALONE = World(0, 1, 0, device=None)  # type: ignore[arg-type]


def saved(run: Path, *steps: int) -> Path:
    def write(*, folder: Path, tag: str) -> None:
        (folder / tag).mkdir(parents=True)
        for name in ("a.pt", "b.pt", "c.pt"):
            (folder / tag / name).write_text(f"{name} of {tag}")

    for step in steps:
        assert checkpoint.save(write, run=run, state=RunState(step=step), world=ALONE) is None
    return run / "checkpoints"


def find(world: World, run: Path, blind: int) -> str | None:
    """Find as usual, on a node of rank `blind` that does not have the run's file system."""
    if world.rank == blind:

        def away(place: Path) -> object:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(place / "run_state.json"))

        checkpoint._read = away  # type: ignore[assignment]
    found = checkpoint.find(run, order={}, world=world)
    return found and found.tag


def test_a_node_without_the_file_system_damages_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2, 4)
    message = r"rank 1 on \S+ cannot read \S+run_state.json, which rank 0 sees: mount \S+checkpoints there"
    with pytest.raises(RankError, match=message):
        run_ranks(find, 2, tmp_path, 1, timeout=60)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_what_nobody_sees_is_lost(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2, 4)
    (folder / "step-00000004/b.pt").unlink()
    assert run_ranks(find, 2, tmp_path, -1, timeout=60) == ["step-00000002"] * 2
    assert (folder / "step-00000004.damaged").is_dir()


def test_a_run_that_has_lost_all_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path, order={}, world=ALONE) is None
    folder = saved(tmp_path, 2)
    (folder / "step-00000002/b.pt").write_text("rotten")
    told = (
        r"no checkpoint of \S+ is whole: \S+step-00000002.*delete \S+ with its \*\.damaged folders, or choose"
    )
    for _ in range(2):
        with pytest.raises(CheckpointError, match=told):
            checkpoint.find(tmp_path, order={}, world=ALONE)
    with pytest.raises(CheckpointError, match=told):
        checkpoint.peek(tmp_path)
    (folder / "step-00000002.damaged").rename(folder / "step-00000002.damaged-and-looked-at")
    assert checkpoint.find(tmp_path, order={}, world=ALONE) is None


def test_a_peek_goes_where_the_run_will(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2, 4)
    (folder / "step-00000004/run_state.json").write_text("{")
    found = checkpoint.peek(tmp_path)
    assert found is not None and found.tag == "step-00000002"
    assert "step-00000004 (run_state.json cannot be read" in found.damaged[0]
    assert json.loads((folder / "step-00000002/run_state.json").read_text())["step"] == 2


def test_states_of_older_programs_are_read(tmp_path: Path) -> None:
    """They do not say when they were evaluated last."""
    folder = saved(tmp_path, 2)
    file = folder / "step-00000002/run_state.json"
    state = json.loads(file.read_text())
    del state["evaluated_at"]
    file.write_text(json.dumps(state))
    found = checkpoint.find(tmp_path, order={}, world=ALONE)
    assert found is not None and (found.state.step, found.state.evaluated_at) == (2, -1)
