"""promptmeup's own loader, asked the same questions."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmeup.data.loader import train_batches
from promptmeup.data.reader import PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import single
from promptmeup.data.transforms import ImageConfig
from promptmeup.records import Batch
from tests.benchmarks.loader import tokenizer
from tests.benchmarks.peers.peer import Job, Keys

SEED = 0
IMAGE_SIZE = 32


def open_batches(job: Job, start_pairs: int) -> tuple[Iterator[Batch], int, dict[str, int | str]]:
    """Return the endless batches of a rank, the pairs of an epoch, and the name of the order."""
    config = DataConfig(train=str(job.folder), workers=job.workers, image=ImageConfig(size=IMAGE_SIZE))
    sources = single(PackedSplit(job.folder), seed=SEED, window=config.window)
    batches = train_batches(
        sources,
        config=config,
        tokenizer=tokenizer(),
        start_pairs=start_pairs,
        global_batch=job.global_batch,
        rank=job.rank,
        size=job.size,
    )
    return batches, sources.stream.num_pairs, sources.stream.identity


class _Loader:
    def __init__(self, job: Job) -> None:
        self._pairs = job.states[0]["pairs"] if job.states else 0
        self._global_batch = job.global_batch
        self.batches, self._num_pairs, self._order = open_batches(job, self._pairs)

    def epoch(self) -> Iterator[Keys]:
        """Yield batches up to the one that ends this epoch, which may begin the next one as well."""
        epoch = self._pairs // self._num_pairs
        while self._pairs // self._num_pairs == epoch:
            batch = next(self.batches)
            self._pairs += self._global_batch
            yield list(batch.keys)

    def state(self) -> Any:
        return {"pairs": self._pairs, "order": self._order}


class Ours:
    name = "promptmeup"
    module = "promptmeup.data.loader"
    package = "promptmeup"
    reads_tars = True

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        shutil.copytree(split.folder, folder)

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[_Loader]:
        loader = _Loader(job)
        try:
            yield loader
        finally:
            loader.batches.close()  # type: ignore[attr-defined]  # it is a generator
