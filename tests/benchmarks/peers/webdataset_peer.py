"""webdataset: the reader that the shards' format comes from; streams tars, keeps no state."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmeup.data.reader import PackedSplit
from tests.benchmarks.peers.peer import Job, Keys, link_shards, require, sample_key

SEED = 0
SHUFFLE = 1000


def _key(sample: tuple[bytes, bytes]) -> str:
    return sample_key(*sample)


class _Loader:
    def __init__(self, job: Job) -> None:
        webdataset = require("webdataset", "webdataset")
        urls = [str(path) for path in sorted(job.folder.glob("*.tar"))]
        pipeline = (
            webdataset.WebDataset(
                urls, shardshuffle=len(urls), seed=SEED, nodesplitter=webdataset.split_by_node
            )
            .shuffle(SHUFFLE)
            .to_tuple("jpg", "json")
            .map(_key)
            .batched(job.local_batch, collation_fn=list)
        )
        self._loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=job.workers)

    def epoch(self) -> Iterator[Keys]:
        return iter(self._loader)

    def state(self) -> Any:
        return None


class WebDataset:
    name = "webdataset"
    module = "webdataset"
    package = "webdataset"
    reads_tars = True

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        link_shards(split, folder)

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[_Loader]:
        yield _Loader(job)
