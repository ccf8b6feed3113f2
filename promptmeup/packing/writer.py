"""Samples -> shard tars, and shard tars -> the index of where everything lies in them."""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from promptmeup.shard_format import (
    IMAGE_SUFFIX,
    INDEX_DTYPE,
    JSON_SUFFIX,
    KEY_PATTERN,
    PAIR_DTYPE,
    ShardEntry,
    file_sha256,
    key_id,
    temporary_path,
    write_array,
)


@dataclass(frozen=True)
class ShardContents:
    """What `read_shard` found.

    In `index`, `shard` is 0, and in `pairs`, `sample` counts from the start of the shard, until `write_index`
    puts the shards of a split together.
    """

    entry: ShardEntry
    index: NDArray[Any]
    pairs: NDArray[Any]


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, bytes]]) -> int:
    """Write (key, JPEG, JSON) of each sample into the tar `path`, in the order given; return their number.

    The shard gets its name when it is whole and on the disk; before, it is a hidden ``.tmp`` file, which an
    exception removes. Equal samples give equal bytes. Without a sample nothing is written.
    """
    temporary = temporary_path(path)
    keys: set[str] = set()
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, jpeg, record in samples:
                    assert KEY_PATTERN.fullmatch(key), f"{key!r} is not a key of 16 hex digits"
                    assert key not in keys, f"two samples with the key {key}"
                    keys.add(key)
                    _add_member(tar, key + IMAGE_SUFFIX, jpeg)
                    _add_member(tar, key + JSON_SUFFIX, record)
            file.flush()
            os.fsync(file.fileno())
        if keys:
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return len(keys)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # the same bytes as webdataset's TarWriter with a fixed time, whose import takes two seconds in every process
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o444, 0
    member.uname = member.gname = "root"
    tar.addfile(member, io.BytesIO(content))


def read_shard(path: Path) -> ShardContents:
    """Read back the finished shard at `path`: where its members lie, its pairs, size and hash."""
    rows: list[tuple[int, ...]] = []
    pairs: list[tuple[int, ...]] = []
    num_boxes = 0
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for row, (image, text) in enumerate(zip(members[::2], members[1::2], strict=True)):
            key = image.name.removesuffix(IMAGE_SUFFIX)
            assert (image.name, text.name) == (key + IMAGE_SUFFIX, key + JSON_SUFFIX), (path, image, text)
            jpeg, content = (tar.extractfile(member).read() for member in (image, text))  # type: ignore[union-attr]
            record = json.loads(content)
            boxes, image_id = len(record["boxes"]), key_id(key)
            place = (image.offset_data, image.size, text.offset_data, text.size, crc32(jpeg), crc32(content))
            rows.append((0, row, *place, boxes, num_boxes, image_id))
            pairs += [
                (row, position, image_id, key_id(caption["image_key"]))
                for position, caption in enumerate(record["captions"])
            ]
            num_boxes += boxes
    matched = sum(image_id == caption_id for *_, image_id, caption_id in pairs)
    counts = len(rows), len(pairs), matched, num_boxes
    entry = ShardEntry(path.name, *counts, path.stat().st_size, file_sha256(path))
    return ShardContents(entry, np.array(rows, dtype=INDEX_DTYPE), np.array(pairs, dtype=PAIR_DTYPE))


def whole_index(shards: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return index and pairs of a split from those of its shards, in order."""
    index, pairs, samples = [np.zeros(0, dtype=INDEX_DTYPE)], [np.zeros(0, dtype=PAIR_DTYPE)], 0
    for number, (its_index, its_pairs) in enumerate(shards):
        index.append(its_index.copy())
        pairs.append(its_pairs.copy())
        index[-1]["shard"] = number
        pairs[-1]["sample"] += samples
        samples += len(its_index)
    return np.concatenate(index), np.concatenate(pairs)


def write_index(folder: Path, shards: Iterable[ShardContents]) -> None:
    """Write index.npy and pairs.npy of a split from its shards, in order."""
    index, pairs = whole_index((shard.index, shard.pairs) for shard in shards)
    write_array(folder / "index.npy", index)
    write_array(folder / "pairs.npy", pairs)
