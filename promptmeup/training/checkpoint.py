"""Checkpoints in RUN/checkpoints: complete before `latest` names them, chosen by rank 0, oldest removed.

checkpoints/step-00000400/   the engine's files and run_state.json
checkpoints/latest           the tag to resume from, replaced atomically after every rank has written
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from promptmeup.distributed.world import World, barrier, broadcast_object
from promptmeup.errors import CheckpointError
from promptmeup.records import RunState
from promptmeup.shard_format import write_atomically, write_json


class Transfer(Protocol):
    """Writes or reads this rank's part of folder/tag; called on every rank."""

    def __call__(self, *, folder: Path, tag: str) -> None: ...


def save(write: Transfer, *, run: Path, state: RunState, world: World, keep: int = 2) -> None:
    """Write a checkpoint of `state.step` and keep the newest `keep`; collective."""
    folder = run / "checkpoints"
    tag = f"step-{state.step:08d}"
    write(folder=folder, tag=tag)
    if world.rank == 0:
        write_json(folder / tag / "run_state.json", asdict(state))
    barrier(world)
    if world.rank == 0:
        write_atomically(folder / "latest", tag.encode())
        for old in sorted(folder.glob("step-*"))[:-keep]:
            if old.name != tag:
                shutil.rmtree(old, ignore_errors=True)


def find_latest(run: Path, *, world: World) -> tuple[str, RunState] | None:
    """Return tag and state of the checkpoint to resume from, or None; rank 0 looks, all ranks agree."""
    found: tuple[str, RunState] | None = None
    if world.rank == 0:
        pointer = run / "checkpoints" / "latest"
        if pointer.exists():
            tag = pointer.read_text().strip()
            try:
                state = RunState(**json.loads((pointer.parent / tag / "run_state.json").read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{pointer} names {tag}, which cannot be read: {error}; write the name of another "
                    f"checkpoint into {pointer}, or delete it to start again"
                ) from error
            found = (tag, state)
    return broadcast_object(found, world)


def resume(read: Transfer, *, run: Path, order: dict[str, int | str], world: World) -> RunState | None:
    """Let `read` load the latest checkpoint and return its state; None where there is none. Collective.

    Raises:
        CheckpointError: the checkpoint belongs to another data order or number of ranks.
    """
    found = find_latest(run, world=world)
    if found is None:
        return None
    tag, state = found
    if state.order != order:
        names = dict.fromkeys([*state.order, *order])
        changed = [
            f"{name} was {state.order.get(name)!r} and is {order.get(name)!r}"
            for name in names
            if state.order.get(name) != order.get(name)
        ]
        raise CheckpointError(
            f"{run} was trained on another data order or other labels: {'; '.join(changed)} (fingerprint: the packed "
            "corpus; labels: the soft labels; window, pairs, blend: of data; order_version: of this program). "
            "Restore what changed, or choose another out= to begin again"
        )
    if state.world_size != world.size:
        raise CheckpointError(
            f"the checkpoint {run / 'checkpoints' / tag} was written by {state.world_size} ranks and this run "
            f"has {world.size}; start it with {state.world_size} ranks"
        )
    read(folder=run / "checkpoints", tag=tag)
    return state
