"""litdata: its own format (chunks of serialized samples), mapped into memory where they are local."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmeup.data.reader import PackedSplit
from tests.benchmarks.peers.peer import Job, Keys, collate_keys, count_samples, members, require

SEED = 0


def _litdata() -> Any:
    return require("litdata", "litdata")


def write(split: PackedSplit, folder: Path, *, shard_bytes: int = 1 << 26) -> None:
    """Write the samples of `split` as litdata chunks; 64 MB is what its documentation uses throughout.

    ``litdata.optimize`` starts processes, each of which writes through this class; one writer in this
    process makes the same files and asks nothing of the module that calls. Bytes are stored as they are.
    """
    _litdata()
    cache = require("litdata.streaming.cache", "litdata").Cache(str(folder), chunk_bytes=shard_bytes)
    for number, (jpeg, record) in enumerate(members(split)):
        cache[number] = {"jpeg": jpeg, "json": record}
    cache.done()
    cache.merge()


def read(folder: Path, *, epochs: int = 1) -> int:
    """Open what `write` made, read it for some epochs in shuffled order, and return how many samples came.

    A local folder is read in place through memory maps, without a copy to its cache; that is its default.
    """
    dataset = _litdata().StreamingDataset(str(folder), shuffle=True, seed=SEED)
    return count_samples(dataset, epochs=epochs)


class _Loader:
    def __init__(self, job: Job) -> None:
        litdata = _litdata()
        # its default for several ranks; said for one as well, since a state of the other kind is refused
        dataset = litdata.StreamingDataset(str(job.folder), shuffle=True, seed=SEED, drop_last=True)
        self._loader = litdata.StreamingDataLoader(
            dataset, batch_size=job.local_batch, num_workers=job.workers, collate_fn=collate_keys
        )
        if job.states:
            self._loader.load_state_dict(job.states[job.rank % len(job.states)])

    def epoch(self) -> Iterator[Keys]:
        return iter(self._loader)

    def state(self) -> Any:
        return self._loader.state_dict()


class LitData:
    name = "litdata"
    module = "litdata"
    package = "litdata"
    reads_tars = False

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        write(split, folder, shard_bytes=shard_bytes)

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[_Loader]:
        yield _Loader(job)
