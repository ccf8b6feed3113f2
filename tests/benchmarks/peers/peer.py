"""What the comparison asks of a library, and what all of its modules share."""

import importlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from promptmeup.data.reader import PackedSplit
from promptmeup.data.transforms import decode

Keys = list[str]
"""keys of the samples of one batch, in its order"""


class MissingPeerError(RuntimeError):
    """A library to compare with is not installed."""


def require(module: str, package: str) -> Any:
    """Import and return `module`.

    Raises:
        MissingPeerError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPeerError(
            f"{package} cannot be imported (no module {error.name!r}); `make bench-...` installs it, from "
            "requirements-bench.lock"
        ) from error


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Job:
    """One rank's part of a reading run."""

    folder: Path
    """what the peer's `write` made"""
    rank: int
    size: int
    workers: int
    global_batch: int
    states: tuple[Any, ...] = ()
    """to resume from: what `Loader.state` returned on each rank of the earlier run, whatever their number"""

    @property
    def local_batch(self) -> int:
        return self.global_batch // self.size


class Loader(Protocol):
    """A library's loader on one rank."""

    def epoch(self) -> Iterator[Keys]:
        """Yield the batches of the next epoch (or of what is left of the one that was resumed)."""

    def state(self) -> Any:
        """Return what has to be saved after the batches taken so far; None where there is no such thing."""


class Peer(Protocol):
    """A library under comparison. Its modules are imported inside its methods: it may be absent."""

    name: str
    module: str
    """what to import, to see whether it is there and to have it ready before ranks are forked"""
    package: str
    """its name on the package index"""
    reads_tars: bool
    """`write` leaves the tar shards as they are: it links to them and adds metadata at most"""

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        """Bring the samples of `split` into the library's format; `shard_bytes` is the size of a shard."""

    def open(self, job: Job) -> AbstractContextManager[Loader]:
        """Open what `write` made, shuffled with a fixed seed, batches of `job.local_batch`."""


def touch(data: bytes | memoryview) -> int:
    """Look at every page of `data`, so that nobody is fast by handing out what has not been read."""
    return len(bytes(data[::4096]))


def count_samples(dataset: Iterable[dict[str, bytes]], *, epochs: int) -> int:
    """Iterate `dataset` for some epochs, looking at every photo and parsing every record; return how many came."""
    import orjson

    samples = (sample for _ in range(epochs) for sample in dataset)
    return sum(1 for sample in samples if touch(sample["jpeg"]) and orjson.loads(sample["json"]))


def collate_keys(samples: list[dict[str, bytes]]) -> Keys:
    """Decode the samples of a batch and return their keys."""
    return [sample_key(sample["jpeg"], sample["json"]) for sample in samples]


def sample_key(jpeg: bytes, record: bytes) -> str:
    """Do what any user does with a sample, decode both members, and return its key.

    Raises:
        ValueError: a member cannot be decoded.
    """
    decode(jpeg)
    key: str = json.loads(record)["key"]
    return key


def members(split: PackedSplit) -> Iterator[tuple[bytes, bytes]]:
    """Yield photo and record of every sample of `split`, both as they are stored."""
    for sample in range(len(split)):
        record = split.read_json(sample)
        yield split.read_image(sample), json.dumps(record, sort_keys=True, ensure_ascii=False).encode()


def link_shards(split: PackedSplit, folder: Path) -> None:
    """Give `folder` the tar shards of `split` by hard links."""
    folder.mkdir()
    for entry in split.manifest.shards:
        (folder / entry.name).hardlink_to(split.folder / entry.name)
