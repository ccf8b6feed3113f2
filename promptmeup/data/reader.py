"""Random access to a packed split: an index and `pread`, no tar streaming.

An index entry says where a member lies in its shard, so any sample costs two reads in any order (20-33
thousand samples/s on a warm cache where streaming the tars gives 4-5 thousand).
"""

import json
import os
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from promptmeup import shard_format
from promptmeup.errors import ShardError

PairFilter = Literal["all", "matched"]
"""Every (image, caption) pair, or only those whose caption belongs to the image."""

OPEN_FILES = 128  # a process may usually have 1024 files open, a corpus may have more shards


def _load(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, read-only."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing; restore it, or pack the corpus again") from error
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"{path} is damaged ({error}); restore it, or pack the corpus again") from error
    return array


def _load_rows(path: Path, dtype: np.dtype[Any], rows: int) -> NDArray[Any]:
    array = _load(path)
    if array.dtype != dtype or array.shape != (rows,):
        raise ShardError(
            f"{path} holds {array.shape} of {array.dtype}, the manifest says ({rows},) of {dtype}; "
            "its files do not belong together: pack the corpus again"
        )
    return array


class PackedSplit:
    """One packed split, opened for reading; cheap to open and safe to use after a fork.

    Raises:
        ShardError: no manifest, or a file that is missing, damaged, or of another size than it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = shard_format.read_manifest(folder)
        shards = self.manifest.shards
        for entry in shards:
            path = folder / entry.name
            try:
                size = path.stat().st_size
            except FileNotFoundError as error:
                raise ShardError(f"{path} is missing; restore it, or pack the corpus again") from error
            if size != entry.bytes:
                raise ShardError(
                    f"{path} has {size} bytes, the manifest says {entry.bytes}: it was changed or not copied "
                    "whole; restore it, or pack the corpus again"
                )
        self.index = _load_rows(folder / "index.npy", shard_format.INDEX_DTYPE, self.manifest.samples)
        self.pairs = _load_rows(folder / "pairs.npy", shard_format.PAIR_DTYPE, self.manifest.pairs)
        self.shard_pairs = tuple(entry.pairs for entry in shards)
        """Pairs by shard; those of a shard are adjacent rows of pairs.npy."""
        bounds = np.cumsum((0, *self.shard_pairs))
        for number, (first, end) in enumerate(pairwise(bounds)):
            samples = self.pairs["sample"][first:end][[0, -1]] if first < end else ()
            if any(self.index["shard"][sample] != number for sample in samples):
                raise ShardError(
                    f"{folder / 'pairs.npy'}: rows {first} to {end} are not the pairs of "
                    f"{shards[number].name}; pack the corpus again"
                )
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of samples (images)."""
        return len(self.index)

    def __reduce__(self) -> tuple[type["PackedSplit"], tuple[Path]]:
        # Started rather than forked workers open the files again; a pickled memory map would be a copy.
        return PackedSplit, (self.folder,)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        files = getattr(self, "_files", {})  # not there when opening failed
        while files:
            os.close(files.popitem()[1])

    def _file(self, shard: int) -> int:
        """Return an open descriptor. One inherited by a fork does as well: `pread` moves no position."""
        descriptor = self._files.get(shard)
        if descriptor is None:
            path = self.folder / self.manifest.shards[shard].name
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ShardError(
                    f"cannot open {path}: {error.strerror}; the shard was there when the run started"
                ) from error
            self._files[shard] = descriptor
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return descriptor

    def _read(self, sample: int, member: Literal["image", "json"]) -> bytes:
        row = self.index[sample]
        size, offset = int(row[f"{member}_size"]), int(row[f"{member}_offset"])
        try:
            data = os.pread(self._file(int(row["shard"])), size, offset)
        except OSError as error:
            raise ShardError(f"cannot read {self.where(sample)}: {error.strerror}") from error
        if len(data) != size:
            raise ShardError(
                f"{self.where(sample)}: {size} bytes expected at {offset}, {len(data)} there; "
                "the shard was cut short while the run went on"
            )
        return data

    def where(self, sample: int) -> str:
        """Return shard, row and key of a sample, for messages."""
        row = self.index[sample]
        key = shard_format.key_of(int(row["image_id"]))
        return f"{self.folder / self.manifest.shards[row['shard']].name}, sample {row['row']} (key {key})"

    def read_image(self, sample: int) -> bytes:
        """Return the stored JPEG file of row `sample` of the index."""
        return self._read(sample, "image")

    def read_json(self, sample: int) -> dict[str, Any]:
        """Return key, image size, captions and boxes of row `sample` of the index.

        Raises:
            ShardError: the shard is damaged or was changed, so that no sample is found at its place.
        """
        try:
            record: dict[str, Any] = json.loads(self._read(sample, "json"))
        except ValueError as error:
            raise ShardError(
                f"{self.where(sample)}: not JSON ({error}); run shards/verify.py, then restore the shard"
            ) from error
        if record.get("schema") != shard_format.SCHEMA:
            raise ShardError(
                f"{self.where(sample)}: format version {record.get('schema')!r}, this program reads "
                f"{shard_format.SCHEMA}; pack the corpus again"
            )
        return record

    def matched(self) -> NDArray[np.bool_]:
        """Return, for every pair, whether the caption belongs to the image."""
        return np.asarray(self.pairs["image_id"] == self.pairs["caption_id"])


class LabelReader:
    """Soft labels of a packed split, memory-mapped shard by shard.

    Raises:
        ShardError: labelling did not finish, or was done on another corpus than `split`.
    """

    def __init__(self, folder: Path, split: PackedSplit) -> None:
        self.folder = folder
        self.split = split
        self.manifest = shard_format.read_label_manifest(folder)
        if self.manifest.corpus != split.manifest.fingerprint:
            raise ShardError(
                f"the soft labels in {folder} are for corpus {self.manifest.corpus}, but {split.folder} is "
                f"corpus {split.manifest.fingerprint}; it was packed anew: run launch/label.py again"
            )
        # a small vocabulary has fewer prompts than are kept of a large one
        kept = self.manifest.num_kept
        self._object_dtype = shard_format.label_dtype(min(kept, len(self.manifest.entities)))
        self._image_dtype = shard_format.label_dtype(min(kept, len(self.manifest.relations)))
        self._objects: dict[int, NDArray[Any]] = {}
        self._images: dict[int, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type["LabelReader"], tuple[Path, PackedSplit]]:
        return LabelReader, (self.folder, self.split)

    @property
    def num_kept(self) -> int:
        """T, the entries of a label."""
        return self.manifest.num_kept

    def objects(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids [M, T] and probabilities [M, T] of the sample's M stored objects, in stored order."""
        row = self.split.index[sample]
        shard, start = int(row["shard"]), int(row["box_start"])
        if shard not in self._objects:
            entry = self.split.manifest.shards[shard]
            path = shard_format.label_file(self.folder, entry.name, "objects")
            self._objects[shard] = _load_rows(path, self._object_dtype, entry.boxes)
        rows = self._objects[shard][start : start + int(row["boxes"])]
        return rows["ids"].astype(np.int64), rows["probs"].astype(np.float32)

    def image(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids [T] and probabilities [T] of the sample's image."""
        row = self.split.index[sample]
        shard = int(row["shard"])
        if shard not in self._images:
            entry = self.split.manifest.shards[shard]
            path = shard_format.label_file(self.folder, entry.name, "images")
            self._images[shard] = _load_rows(path, self._image_dtype, entry.samples)
        label = self._images[shard][int(row["row"])]
        return label["ids"].astype(np.int64), label["probs"].astype(np.float32)
