"""Samples -> shard tars, and shard tars -> the index of where everything lies in them."""

import contextlib
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from webdataset import TarWriter

from promptmeup.shard_format import (
    IMAGE_SUFFIX,
    INDEX_DTYPE,
    JSON_SUFFIX,
    PAIR_DTYPE,
    ShardEntry,
    file_sha256,
    key_id,
    shard_name,
    write_array,
)

KEY_PATTERN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class ShardContents:
    """What `read_shard` found; `pairs` counts its samples from the start of the shard."""

    entry: ShardEntry
    index: NDArray[Any]
    pairs: NDArray[Any]


class ShardWriter:
    """Writes samples into ``shard-000000.tar``, ... of `folder`, in the order given.

    A shard gets its name when it is whole and on the disk; before, it is a hidden ``.tmp`` file. Equal
    samples give equal bytes. Leaving the context by an exception removes the unfinished shard.
    """

    def __init__(self, folder: Path, *, samples_per_shard: int) -> None:
        self._folder, self._samples_per_shard = folder, samples_per_shard
        self._keys: set[str] = set()
        self._shards: list[ShardContents] = []
        self._file: BinaryIO | None = None
        self._tar: TarWriter | None = None
        self._samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and self._tar is not None:
            with contextlib.suppress(OSError):  # ending the tar needs room that a full disk has not
                self._tar.close()
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self._folder / f".{shard_name(len(self._shards))}.tmp"

    def add(self, key: str, *, jpeg: bytes, record: bytes) -> None:
        """Append one sample: KEY.jpg and KEY.json."""
        assert KEY_PATTERN.fullmatch(key), f"{key!r} is not a key of 16 hex digits"
        assert key not in self._keys, f"two samples with the key {key}"
        self._keys.add(key)
        if self._file is None:
            self._file = self._temporary.open("wb")
            self._tar = TarWriter(self._file, user="root", group="root", mtime=0)
        assert self._tar is not None
        self._tar.write({"__key__": key, IMAGE_SUFFIX[1:]: jpeg, JSON_SUFFIX[1:]: record})
        self._samples += 1
        if self._samples == self._samples_per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._file is not None
        assert self._tar is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        number = len(self._shards)
        path = self._folder / shard_name(number)
        self._temporary.replace(path)
        self._file = self._tar = None
        self._samples = 0
        self._shards.append(read_shard(path, number=number))

    def finish(self) -> tuple[ShardEntry, ...]:
        """End the last shard and write index.npy and pairs.npy; return the manifest's entries."""
        if self._file is not None:
            self._finish_shard()
        write_index(self._folder, self._shards)
        return tuple(shard.entry for shard in self._shards)


def read_shard(path: Path, *, number: int) -> ShardContents:
    """Read back the finished shard at `path`: where its members lie, its pairs, size and hash."""
    rows: list[tuple[int, ...]] = []
    pairs: list[tuple[int, ...]] = []
    num_boxes = 0
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for row, (image, text) in enumerate(zip(members[::2], members[1::2], strict=True)):
            key = image.name.removesuffix(IMAGE_SUFFIX)
            assert (image.name, text.name) == (key + IMAGE_SUFFIX, key + JSON_SUFFIX), (path, image, text)
            content = tar.extractfile(text)
            assert content is not None
            record = json.load(content)
            boxes, image_id = len(record["boxes"]), key_id(key)
            place = (image.offset_data, image.size, text.offset_data, text.size)
            rows.append((number, row, *place, boxes, num_boxes, image_id))
            pairs += [
                (row, position, image_id, key_id(caption["image_key"]))
                for position, caption in enumerate(record["captions"])
            ]
            num_boxes += boxes
    entry = ShardEntry(
        path.name, len(rows), len(pairs), num_boxes, path.stat().st_size, sha256=file_sha256(path)
    )
    return ShardContents(entry, np.array(rows, dtype=INDEX_DTYPE), np.array(pairs, dtype=PAIR_DTYPE))


def write_index(folder: Path, shards: list[ShardContents]) -> None:
    """Write index.npy and pairs.npy of a split from its shards, in order."""
    index = np.concatenate([shard.index for shard in shards])
    pairs = np.concatenate([shard.pairs for shard in shards])
    samples_before = np.cumsum([0] + [len(shard.index) for shard in shards[:-1]])
    pairs["sample"] += np.repeat(samples_before, [len(shard.pairs) for shard in shards])
    write_array(folder / "index.npy", index)
    write_array(folder / "pairs.npy", pairs)
