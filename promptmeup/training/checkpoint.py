"""Checkpoints in RUN/checkpoints: whole or not there, verified before they are used, the oldest removed.

checkpoints/step-00000400/           the engine's files, and run_state.json with every file's size and sha256
checkpoints/step-00000400.partial/   being written; never chosen
checkpoints/step-00000400.damaged/   not as it was written: put aside, never chosen

A checkpoint gets its name when all of it is on the disk, so the newest name is the one to resume from.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from promptmeup.distributed.world import World, barrier, broadcast_object, gather_objects, warn
from promptmeup.errors import CheckpointError
from promptmeup.records import RunState
from promptmeup.shard_format import write_json

Files = dict[str, tuple[int, str]]
"""name in the checkpoint -> bytes, sha256"""

PROGRESS_FILE = "PROMPTMEUP_PROGRESS_FILE"
"""variable that names a file which changes with every checkpoint, so that a job script knows whether a start has gained
one; its first line says the step, for people"""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Transfer(Protocol):
    """Writes this rank's part of folder/tag; called on every rank."""

    def __call__(self, *, folder: Path, tag: str) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    """of all checkpoints of the run"""
    tag: str
    state: RunState
    damaged: tuple[str, ...] = ()
    """what was said, on rank 0, of newer ones that are damaged"""


def complete(run: Path) -> list[str]:
    """Return the tags of the run's whole checkpoints, oldest first."""
    return sorted(
        path.name
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", path.name) and (path / "run_state.json").exists()
    )


def save(write: Transfer, *, run: Path, state: RunState, world: World, keep: int = 2) -> str | None:
    """Write a checkpoint of `state.step`, verified on its way, and keep the newest `keep`. Collective.

    Where the disk is full and there are several checkpoints, the oldest makes room and all is tried once more.

    Returns:
        what went wrong, on every rank, where one of them could not write: what was there before still is. None if all
        is well.
    """
    folder = run / "checkpoints"
    tag = f"step-{state.step:08d}"
    problem, is_full = _try(write, folder=folder, tag=tag, state=state, world=world)
    has_older = broadcast_object(len(complete(run)) > 1, world)
    if problem and is_full and has_older:
        if world.is_main:
            shutil.rmtree(folder / complete(run)[0], ignore_errors=True)
        problem, _ = _try(write, folder=folder, tag=tag, state=state, world=world)
    if problem:
        kept = broadcast_object(complete(run), world)
        newest = f"{folder / kept[-1]} is the newest one still" if kept else f"{folder} has none yet"
        return f"the checkpoint of step {state.step} could not be written: {problem}; {newest}"
    if world.is_main:
        for old in complete(run)[:-keep]:
            shutil.rmtree(folder / old, ignore_errors=True)
        _tell_progress(run, state.step)
    return None


def _tell_progress(run: Path, step: int) -> None:
    if PROGRESS_FILE in os.environ:
        try:
            # a run that went back may save the same step again: the second line is another one all the same
            text = f"{step} of {run}\nsaved at {time.time_ns()} ns\n"
            Path(os.environ[PROGRESS_FILE]).write_text(text, encoding="utf-8")
        except OSError as error:  # the script will not queue the job again; the run itself is well
            warn(f"cannot write {os.environ[PROGRESS_FILE]} ({PROGRESS_FILE}): {error.strerror}")


def _try(write: Transfer, *, folder: Path, tag: str, state: RunState, world: World) -> tuple[str, bool]:
    """Write all of a checkpoint or nothing; return what went wrong ("" for nothing) and whether for want of space."""
    partial = f"{tag}.partial"
    if world.is_main:
        for left in folder.glob("step-*.partial"):
            shutil.rmtree(left, ignore_errors=True)
    barrier(world)
    problem = _attempt(lambda: write(folder=folder, tag=partial))
    found = _first(problem, world)
    if found is None:
        files: Files = {}
        names = broadcast_object(_names(folder / partial), world)
        problem = _attempt(lambda: files.update(_hashed(folder / partial, names[world.rank :: world.size])))
        everyone = gather_objects((problem, files), world)
        files = {name: entry for _, part in everyone for name, entry in sorted(part.items())}
        found = next((error for error, _ in everyone if error is not None), None)
    if found is None:
        if world.is_main:
            problem = _attempt(lambda: _publish(folder, tag=tag, state=state, files=files))
        found = _first(problem, world)
    if found is not None and world.is_main:
        shutil.rmtree(folder / partial, ignore_errors=True)
    barrier(world)
    return found or ("", False)


def _publish(folder: Path, *, tag: str, state: RunState, files: Files) -> None:
    partial = folder / f"{tag}.partial"
    write_json(partial / "run_state.json", {**asdict(state), "files": files})
    _synchronise(partial)
    shutil.rmtree(folder / tag, ignore_errors=True)  # of an earlier start, which went on from an older one
    partial.rename(folder / tag)
    _synchronise(folder)


def _attempt(action: Callable[[], None]) -> tuple[str, bool] | None:
    """Do it; return what went wrong and whether for want of space."""
    try:
        action()
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        # torch's writer says what failed, and not why
        is_full = isinstance(cause, RuntimeError) or (isinstance(cause, OSError) and cause.errno in _NO_SPACE)
        return str(error), is_full
    return None


def _first(problem: tuple[str, bool] | None, world: World) -> tuple[str, bool] | None:
    """Return the problem of the first rank that has one."""
    return next((found for found in gather_objects(problem, world) if found is not None), None)


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _hashed(folder: Path, names: list[str]) -> Files:
    """Return size and hash of files, once they are on the disk: a full disk is often told only by fsync."""
    found: Files = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = (file.tell(), digest)
    return found


def _synchronise(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(run: Path, *, order: Mapping[str, int | str], world: World) -> Checkpoint | None:
    """Return the newest checkpoint that is as it was written, or None where there is none yet. Collective.

    A damaged one is put aside under another name, loudly, and the one before it is taken.

    Raises:
        CheckpointError: all are damaged, now or at an earlier start; or a rank does not see them; or the checkpoint
            belongs to another order of the data.
    """
    folder = run / "checkpoints"
    damaged: list[str] = []
    said: list[str] = []
    while True:
        tags = broadcast_object(complete(run), world)
        if not tags:
            break
        tag = tags[-1]
        state, problem = _verified(folder / tag, world)
        if state is not None:
            _insist_on(order, state, run)
            return Checkpoint(folder, tag, state, tuple(said))
        damaged.append(f"{folder / tag} ({problem})")
        if world.is_main:
            shutil.rmtree(folder / f"{tag}.damaged", ignore_errors=True)
            (folder / tag).rename(folder / f"{tag}.damaged")
            before = f"going back to {tags[-2]}" if len(tags) > 1 else "and it is the only one"
            said.append(
                f"the checkpoint {folder / tag} is damaged: {problem}; it is now called {tag}.damaged, {before}"
            )
            warn(said[-1])
        barrier(world)
    if lost := damaged or broadcast_object(_put_aside(folder), world):
        raise _none_is_whole(run, lost)
    return None


def peek(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose state can be read, else unverified; None where there is none yet.

    Raises:
        CheckpointError: there are some, and of none the state can be read.
    """
    folder = run / "checkpoints"
    damaged: list[str] = []
    for tag in reversed(complete(run)):
        try:
            return Checkpoint(folder, tag, _read(folder / tag)[0], tuple(damaged))
        except (FileNotFoundError, ValueError) as error:  # `find` will put it aside
            damaged.append(f"{folder / tag} (run_state.json cannot be read: {error})")
        except OSError as error:
            raise CheckpointError(f"{folder / tag}: run_state.json cannot be read: {error}") from error
    if lost := damaged or _put_aside(folder):
        raise _none_is_whole(run, lost)
    return None


def _put_aside(folder: Path) -> list[str]:
    """Return the damaged checkpoints that some start has renamed: a run that has them and no other is no new run."""
    return sorted(str(path) for path in folder.glob("step-*.damaged"))


def _none_is_whole(run: Path, damaged: list[str]) -> CheckpointError:
    return CheckpointError(
        f"no checkpoint of {run} is whole: {'; '.join(damaged)}. Bring one back (once put aside they are called "
        f"*.damaged), or, to begin again from step 0, delete {run / 'checkpoints'} with its *.damaged folders, or "
        "choose another out="
    )


def _read(place: Path) -> tuple[RunState, Files]:
    content = json.loads((place / "run_state.json").read_text(encoding="utf-8"))
    try:
        files = {name: (int(size), str(digest)) for name, (size, digest) in content.pop("files").items()}
        return RunState(**content), files
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{place} was written by another version of this program ({error}); resume with that one, or choose "
            "another out= to begin again"
        ) from error


def _verified(place: Path, world: World) -> tuple[RunState | None, str]:
    """Return the state, or None and what is wrong; every rank reads its share of the files.

    Raises:
        CheckpointError: a rank cannot read it, which says nothing about the checkpoint.
    """
    state: RunState | None = None
    rotten: str | None = None
    away: str | None = None
    missing: str | None = None
    here = f"rank {world.rank} on {socket.gethostname()}"
    try:
        state, files = _read(place)
        for name in sorted(files)[world.rank :: world.size]:
            if rotten is None and _hashed(place, [name])[name] != files[name]:
                rotten = f"{name} is not what was written"
    except FileNotFoundError as error:
        missing = str(error.filename)
    except ValueError as error:
        rotten = f"run_state.json cannot be read: {error}"
    except OSError as error:
        away = f"{here} cannot read {error.filename}: {error.strerror}"
    lost = {path for path in gather_objects(missing, world) if path is not None}
    # what rank 0 sees is not lost: a node without the file system says nothing about the checkpoint
    seen = broadcast_object({path for path in lost if Path(path).exists()}, world)
    if missing in seen:
        away = f"{here} cannot read {missing}, which rank 0 sees: mount {place.parent} there"
    elif missing is not None and rotten is None:
        rotten = f"{Path(missing).name} is not there"
    everyone = gather_objects((rotten, away), world)
    found = next((text for text, _ in everyone if text is not None), None)
    unread = next((text for _, text in everyone if text is not None), None)
    if found is None and unread is not None:
        raise CheckpointError(f"{unread}; see that all nodes read {place.parent}, and start again to resume")
    return (state, "") if found is None else (None, found)


def changes(before: Mapping[str, int | str], now: Mapping[str, int | str]) -> list[str]:
    """Return in words what the order of the data depended on and is different now."""
    names = dict.fromkeys([*before, *now])
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _insist_on(order: Mapping[str, int | str], state: RunState, run: Path) -> None:
    changed = changes(state.order, order)
    if changed:
        raise CheckpointError(
            f"{run} was trained on another data order or other labels: {'; '.join(changed)} (fingerprint: the packed "
            "corpus; labels: the soft labels; window, pairs, blend: of data; order_version: of this program). "
            "Restore what changed, or choose another out= to begin again"
        )
