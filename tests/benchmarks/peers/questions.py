"""The questions of the table, put to one peer: ``python -m tests.benchmarks.peers.questions NAME SPLIT FILE``.

Every answer comes from fresh processes: ranks that have joined each other (gloo), forked from a server
that has only imported libraries. After every answer FILE has all answers so far, so that nothing but a
crash's own answer is lost.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from promptmeup.data.reader import PackedSplit
from promptmeup.distributed.world import World
from promptmeup.shard_format import write_json
from tests.benchmarks.peers import compare, damage
from tests.benchmarks.peers.energon import Energon
from tests.benchmarks.peers.litdata_peer import LitData
from tests.benchmarks.peers.mosaicml import MosaicML
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.peers.peer import Job, Keys, Peer
from tests.benchmarks.peers.webdataset_peer import WebDataset
from tests.support.ranks import RankError, run_ranks

PEERS: tuple[Peer, ...] = (WebDataset(), MosaicML(), LitData(), Energon(), Ours())
GLOBAL_BATCH = 16
SHARDS = 12
"""as many as any peer's workers can share: 4 ranks, or 2 of 3 workers"""
TAKEN = 20
"""batches before a run is stopped and resumed"""
TIMEOUT = 40.0
"""seconds for one run of some ranks; they take one or two"""


@dataclass
class Reading:
    """What one rank has read."""

    epochs: list[list[Keys]] = field(default_factory=list)
    state: Any = None
    error: str = ""
    """name of the exception that ended it, and when"""


class NoAnswerError(Exception):
    """A run that an answer needs did not come to its end; the message is the answer."""


def by_name(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def _as_in_training() -> None:
    """Start loaders' workers by fork, the default of a training process; ours inherited the fork server."""
    multiprocessing.set_start_method("fork", force=True)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    warnings.filterwarnings("ignore", "'pin_memory' argument is set", UserWarning)


def _read(world: World, peer: Peer, job: dict[str, Any], stop: int | None, epochs: int) -> Reading:
    """Life of a rank: read `epochs` epochs, or `stop` batches."""
    _as_in_training()
    reading = Reading()
    try:
        with peer.open(Job(rank=world.rank, size=world.size, **job)) as loader:
            for _ in range(epochs):
                batches: list[Keys] = []
                reading.epochs.append(batches)
                for keys in loader.epoch():
                    batches.append(keys)
                    if len(batches) == stop:
                        break
            reading.state = loader.state()
    except Exception as error:
        number = sum(map(len, reading.epochs))
        reading.error = f"{type(error).__name__} " + (f"after {number} batches" if number else "at once")
        print(f"rank {world.rank}: {error}", file=sys.stderr)
    return reading


class Asked:
    """A peer with its data, ready to be run."""

    def __init__(self, peer: Peer, split: PackedSplit, scratch: Path) -> None:
        self.peer = peer
        self.split = split
        self.scratch = scratch
        self.data = scratch / "data"
        shard_bytes = sum(entry.bytes for entry in split.manifest.shards) // SHARDS
        peer.write(split, self.data, shard_bytes=shard_bytes)
        self._runs: dict[tuple[int, int], list[Reading]] = {}

    def readings(
        self,
        size: int,
        workers: int,
        *,
        folder: Path | None = None,
        stop: int | None = None,
        states: tuple[Any, ...] = (),
        epochs: int = 1,
    ) -> list[Reading]:
        """Return what each of `size` ranks reads."""
        job = {
            "folder": folder or self.data,
            "workers": workers,
            "global_batch": GLOBAL_BATCH,
            "states": states,
        }
        environment = {"LOCAL_WORLD_SIZE": str(size)}
        try:
            return run_ranks(
                _read, size, self.peer, job, stop, epochs, timeout=TIMEOUT, environment=environment
            )
        except RankError as error:
            print(error, file=sys.stderr)
            hangs = "did not finish" in str(error)
            raise NoAnswerError(f"hangs ({TIMEOUT:.0f} s)" if hangs else "a rank dies") from error

    def epoch(self, size: int, workers: int) -> list[Reading]:
        """Return a whole epoch's readings; the same run is made once."""
        if (size, workers) not in self._runs:
            self._runs[size, workers] = whole(self.readings(size, workers))
        return self._runs[size, workers]

    def batches(self, size: int, workers: int) -> list[compare.GlobalBatch]:
        return _global(self.epoch(size, workers))

    def stopped(self, size: int, workers: int) -> list[Reading]:
        """Return readings that were stopped after some batches, with their states."""
        readings = whole(self.readings(size, workers, stop=TAKEN))
        if all(reading.state is None for reading in readings):
            raise NoAnswerError("no state")
        return readings

    def damaged(self, how: Callable[[Path, bytes], None]) -> tuple[Reading, str]:
        """Return what is read after `how` was done to the files, and the key of the sample it was done to."""
        folder = self.scratch / how.__name__
        shutil.copytree(self.data, folder)
        sample = len(self.split) // 2
        how(folder, self.split.read_image(sample))
        return self.readings(1, 0, folder=folder)[0], self.split.read_json(sample)["key"]


def whole(readings: list[Reading]) -> list[Reading]:
    for rank, reading in enumerate(readings):
        if reading.error:
            raise NoAnswerError(f"error: {reading.error} (rank {rank})")
    return readings


def _global(readings: list[Reading]) -> list[compare.GlobalBatch]:
    return compare.global_batches([reading.epochs[0] for reading in readings])


def _ratio(equal: tuple[int, int]) -> str:
    return f"{equal[0]}/{equal[1]}"


def plain_tars(asked: Asked) -> str:
    return "yes" if asked.peer.reads_tars else "no, own format"


def ranks(asked: Asked) -> str:
    return _ratio(compare.equal_batches(asked.batches(1, 4), asked.batches(2, 2), asked.batches(4, 1)))


def workers(asked: Asked) -> str:
    return _ratio(compare.equal_batches(asked.batches(2, 0), asked.batches(2, 1), asked.batches(2, 3)))


def epochs(asked: Asked) -> str:
    (reading,) = whole(asked.readings(1, 0, epochs=2))
    keys = [key for epoch in reading.epochs for batch in epoch for key in batch]
    number = len(asked.split)  # ours begins the second epoch within the batch that ends the first
    return "yes" if keys[:number] != keys[number : 2 * number] else "no"


def resume(asked: Asked) -> str:
    states = tuple(reading.state for reading in asked.stopped(2, 2))
    rest = whole(asked.readings(2, 2, states=states))
    return _ratio(compare.equal_batches(asked.batches(2, 2)[TAKEN:], _global(rest)))


def _resume_elsewhere(asked: Asked, old: tuple[int, int], new: tuple[int, int]) -> str:
    first = asked.stopped(*old)
    try:
        rest = _global(whole(asked.readings(*new, states=tuple(reading.state for reading in first))))
    except NoAnswerError as error:
        return str(error)
    expected = asked.batches(*old)
    missing, repeated = compare.missing_and_repeated(expected, _global(first) + rest)
    equal = _ratio(compare.equal_batches(expected[TAKEN:], rest))
    return f"{equal}, {missing} missing, {repeated} repeated"


def resume_more(asked: Asked) -> str:
    return _resume_elsewhere(asked, (2, 2), (4, 1))


def resume_fewer(asked: Asked) -> str:
    return _resume_elsewhere(asked, (4, 1), (1, 4))


def steps(asked: Asked) -> str:
    counts = "/".join(str(len(reading.epochs[0])) for reading in asked.epoch(4, 1))
    everything = [
        tuple(sorted(entry["key"] for entry in map(asked.split.read_json, range(len(asked.split)))))
    ]
    missing, repeated = compare.missing_and_repeated(everything, asked.batches(4, 1))
    # what ours has beyond an epoch is the beginning of the next one, in the batch that ends this one
    surplus = "of the next epoch" if isinstance(asked.peer, Ours) else "repeated"
    return f"{counts}; {missing} missing, {repeated} {surplus}"


def flipped_bit(asked: Asked) -> str:
    reading, key = asked.damaged(damage.flip_bit)
    if reading.error:
        return f"yes: {reading.error}"
    return "no" if any(key in batch for batch in reading.epochs[0]) else "yes: left out"


def half_a_shard(asked: Asked) -> str:
    reading, _ = asked.damaged(damage.halve)
    if reading.error:
        return f"error: {reading.error}"
    number = len({key for batch in reading.epochs[0] for key in batch})
    return f"silent: {number} of {len(asked.split)} samples"


def state_size(asked: Asked) -> str:
    return compare.state_cell([reading.state for reading in asked.stopped(4, 1)])


def _victim(pipe: Any, peer: Peer, job: Job) -> None:
    """Read some batches and wait to be killed, with every process it has started."""
    os.setsid()
    _as_in_training()
    with peer.open(job) as loader:
        batches = loader.epoch()
        for _ in range(3):
            next(batches)
        pipe.send(None)
        time.sleep(TIMEOUT)


def residue(asked: Asked) -> str:
    """Kill a training process and its workers as a scheduler does, all at once and with SIGKILL."""
    context = multiprocessing.get_context("forkserver")
    job = Job(asked.data, rank=0, size=1, workers=1, global_batch=GLOBAL_BATCH)
    ours, theirs = context.Pipe(duplex=False)
    before = damage.temporary_names()
    process = context.Process(target=_victim, args=(theirs, asked.peer, job))
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT):
            return f"hangs ({TIMEOUT:.0f} s)"
        ours.recv()
    except EOFError:
        return "error before the kill"
    finally:
        assert process.pid is not None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()
    time.sleep(1)  # the kernel may still be at it
    left = damage.temporary_names() - before
    print(*sorted(left), sep="\n", file=sys.stderr)
    shared = {path for path in left if path.is_relative_to(damage.SHARED_MEMORY)}
    for path in shared:
        path.unlink(missing_ok=True)
    return f"{len(shared)} + {len(left - shared)}"


QUESTIONS: dict[str, Callable[[Asked], str]] = {
    "reads plain WebDataset tars": plain_tars,
    "equal global batches at 1, 2, 4 ranks (4, 2, 1 workers each)": ranks,
    "equal global batches with 0, 1, 3 workers (2 ranks)": workers,
    "another order every epoch, with a fixed seed": epochs,
    "equal batches after resuming (2 ranks)": resume,
    "the same, 2 ranks -> 4": resume_more,
    "the same, 4 ranks -> 1": resume_fewer,
    "batches of each of 4 ranks; samples of an epoch": steps,
    "notices a flipped bit that the decoder does not": flipped_bit,
    "a shard cut in half": half_a_shard,
    "state of a 4-rank run": state_size,
    "left behind by kill -9: shared memory + temporary files": residue,
}


def main(name: str, split: Path, file: Path) -> None:
    peer = by_name(name)
    # the server imports the library once, instead of every rank
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["promptmeup.distributed.world", __spec__.name, peer.module])
    forkserver.ensure_running()
    cells: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        asked = Asked(peer, PackedSplit(split), Path(scratch))
        for question, answer in QUESTIONS.items():
            began = time.monotonic()
            try:
                cells[question] = answer(asked)
            except NoAnswerError as error:
                cells[question] = str(error)
            print(f"{time.monotonic() - began:6.1f} s  {question}: {cells[question]}", flush=True)
            write_json(file, cells)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
