"""The run folder: can all ranks write there, is there room for its checkpoints, and where would the run begin?"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from promptmeup.data.remote import is_remote
from promptmeup.distributed.memory import checkpoint_bytes
from promptmeup.distributed.world import World
from promptmeup.doctor.finding import GB, Finding, failed, ok, warning
from promptmeup.errors import CheckpointError
from promptmeup.progress import spoken
from promptmeup.training.checkpoint import changes, peek
from promptmeup.training.inputs import open_sources
from promptmeup.training.settings import PretrainConfig

SEEN_SECONDS = 5.0
"""that a file may take from one node to the other"""


def existing_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    while not path.is_dir():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Return what a user may still write to the file system of `path`; quotas are not known here."""
    stat = os.statvfs(existing_folder(path))
    return stat.f_bavail * stat.f_frsize


@contextmanager
def probe_file(out: Path | None) -> Iterator[dict[str, str]]:
    """Write a small file where the run folder is or will be, and remove it at the end.

    Yields "probe": its path, or "probe_error": why it cannot be written; nothing without `out`.
    """
    if out is None:
        yield {}
        return
    path = existing_folder(out) / f".doctor-{secrets.token_hex(4)}.tmp"
    try:
        path.write_text("promptmeup\n", encoding="utf-8")
    except OSError as error:
        yield {
            "probe_error": f"cannot write to {path.parent}: {error.strerror}; choose another out=, or free space there"
        }
        return
    try:
        yield {"probe": str(path)}
    finally:
        with suppress(OSError):
            path.unlink()


def sees_probe(notice: dict[str, str]) -> Finding:
    """Say whether this rank sees the file that rank 0 wrote: DeepSpeed writes checkpoints on every rank."""
    if "probe_error" in notice:
        return failed(notice["probe_error"])
    path = Path(notice["probe"])
    deadline = time.monotonic() + SEEN_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.name in os.listdir(path.parent):  # a listing: a look-up may be answered from a cache
                if os.access(path.parent, os.W_OK):
                    return ok("")
                return failed(
                    f"cannot write to {path.parent} here: let this user write there, or choose another out="
                )
        time.sleep(0.2)
    return failed(
        f"does not see what rank 0 wrote to {path.parent}: the run folder must be on a file system that "
        "all nodes share; "
        "choose another out="
    )


def room(config: PretrainConfig, *, parameters: int) -> Finding:
    """Compare the disk of the run folder with the checkpoints and models that the run will keep there.

    One more than `keep_checkpoints` is there while it is written. best/ and model/ are float32.
    """
    dtype = torch.bfloat16 if _is_low_precision(config) else torch.float32
    # of several ranks: one alone writes no more
    a_checkpoint = checkpoint_bytes(parameters, stage=config.engine.stage(ranks=2, dtype=dtype), dtype=dtype)
    number = config.keep_checkpoints + 1
    needed = a_checkpoint * number + parameters * 4 * 2
    present = _size(config.out / "checkpoints") + _size(config.out / "best") + _size(config.out / "model")
    free = free_bytes(config.out)
    facts = {
        "free_gb": round(free / GB, 2),
        "need_gb": round(needed / GB, 2),
        "present_gb": round(present / GB, 2),
        "parameters": parameters,
    }
    text = (
        f"{config.out}: {spoken(free)} free; {parameters / 1e6:.1f} million parameters take {spoken(needed)} "
        f"({number} checkpoints of {spoken(a_checkpoint)}, 2 models)"
    )
    text += f", {spoken(present)} of it there" if present else ""
    if free + present < needed:
        return failed(
            f"{text}: free {spoken(needed - free - present)}, set keep_checkpoints=1, or choose another out=",
            **facts,
        )
    return ok(text, **facts)


def _is_low_precision(config: PretrainConfig) -> bool:
    return config.engine.precision == "bf16" or (
        config.engine.precision == "auto" and torch.cuda.is_available()
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def free_room(folder: Path, reason: str) -> Finding:
    """Say how much room there is, where what is needed is unknown for some `reason`."""
    free = free_bytes(folder)
    return ok(f"{folder}: {spoken(free)} free; {reason}", free_gb=round(free / GB, 2))


def current_folder() -> Finding:
    """Say how much room the current folder has, where no configuration names another."""
    free = free_bytes(Path())
    if not os.access(Path(), os.W_OK):
        return failed(
            f"cannot write to the current folder {Path.cwd()}: start runs elsewhere",
            free_gb=round(free / GB, 2),
        )
    return ok(f"{spoken(free)} free in the current folder", free_gb=round(free / GB, 2))


def start_point(config: PretrainConfig) -> Finding:
    """Say where the run would begin: afresh, or at the newest checkpoint, which must be of this data."""
    found = peek(config.out)
    if found is None:
        return ok("none: the run starts afresh", step=0)
    tag, state = found.tag, found.state
    changed = _changes(config, state.order)
    if changed:
        raise CheckpointError(
            f"{config.out} was trained on another data order or other labels: {'; '.join(changed)}; "
            "restore what changed, or "
            "choose another out="
        )
    if found.damaged:
        return warning(
            f"{'; '.join(found.damaged)}: the run puts it aside and goes on from {tag}, after "
            f"{state.pairs_consumed:,} pairs",
            step=state.step,
        )
    if config.steps is not None and state.step >= config.steps:
        return ok(f"{tag} is the last step: nothing is left to train", step=state.step)
    return ok(f"the run goes on from {tag}, after {state.pairs_consumed:,} pairs", step=state.step)


def _changes(config: PretrainConfig, before: dict[str, int | str]) -> list[str]:
    """Return what the order depended on and is different now; of corpora on a server, only the run itself knows."""
    if any(is_remote(place) for place in config.data.training):
        return []
    sources, _ = open_sources(config, World(0, 1, 0, torch.device("cpu")))
    for opened in sources.splits:
        opened.close()
    return changes(before, sources.identity)
