"""MosaicML Streaming: its own format (MDS), state of five numbers, shared memory between ranks."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmeup.data.reader import PackedSplit
from tests.benchmarks.peers.peer import Job, Keys, collate_keys, count_samples, members, require

PACKAGE = "mosaicml-streaming"
SEED = 0
READ_BATCH = 50


def _streaming() -> Any:
    return require("streaming", PACKAGE)


def write(split: PackedSplit, folder: Path, *, shard_bytes: int = 1 << 26) -> None:
    """Write the samples of `split` as MDS, uncompressed (JPEG does not compress); 64 MB is its own default."""
    columns = {"jpeg": "bytes", "json": "bytes"}
    with _streaming().MDSWriter(out=str(folder), columns=columns, size_limit=shard_bytes) as writer:
        for jpeg, record in members(split):
            writer.write({"jpeg": jpeg, "json": record})


def clean() -> None:
    """Remove what datasets leave: shared memory until their process ends, lock files for ever."""
    require("streaming.base.util", PACKAGE).clean_stale_shared_memory()
    for path in Path(tempfile.gettempdir()).glob("[0-9]*_*_filelock"):
        path.unlink(missing_ok=True)


def read(folder: Path, *, epochs: int = 1) -> int:
    """Open what `write` made, read it for some epochs in shuffled order, and return how many samples came.

    Nothing is downloaded (``local`` without ``remote``) nor evicted (no ``cache_limit``); py1e is its
    default, one canonical node its default for one machine. Its threads mark shards as ready up to
    ``predownload`` samples ahead and otherwise wake up every 7 ms: with the default of 8 batches the
    reader waits for them most of the time (5100 samples/s here, 14200 when they may go to the end).
    Call `clean` afterwards.
    """
    dataset = _streaming().StreamingDataset(
        local=str(folder),
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_seed=SEED,
        num_canonical_nodes=1,
        batch_size=READ_BATCH,
        predownload=1 << 20,
    )
    return count_samples(dataset, epochs=epochs)


class _Loader:
    def __init__(self, job: Job) -> None:
        streaming = _streaming()
        self._dataset = streaming.StreamingDataset(
            local=str(job.folder),
            shuffle=True,
            shuffle_seed=SEED,
            num_canonical_nodes=1,
            batch_size=job.local_batch,
        )
        self._loader = streaming.StreamingDataLoader(
            self._dataset, batch_size=job.local_batch, num_workers=job.workers, collate_fn=collate_keys
        )
        # it counts the samples of a batch by looking at its first field; ours is a plain list
        self._loader._get_batch_size = len
        if job.states:
            self._loader.load_state_dict(job.states[0])  # rank 0 saves for all, says its documentation

    def epoch(self) -> Iterator[Keys]:
        return iter(self._loader)

    def state(self) -> Any:
        return self._loader.state_dict()


class MosaicML:
    name = "MosaicML Streaming"
    module = "streaming"
    package = PACKAGE
    reads_tars = False

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        write(split, folder, shard_bytes=shard_bytes)

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[_Loader]:
        yield _Loader(job)
