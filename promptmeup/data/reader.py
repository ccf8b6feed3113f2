"""Random access to a packed split: an index and `pread`, no tar streaming.

An index entry says where a member lies in its shard, so any sample costs one read in any order: the JSON stands
right behind the photo (`make bench-loader` compares that with streaming the tars).
"""

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from promptmeup import shard_format
from promptmeup.data.staging import ShardCache
from promptmeup.errors import ShardError
from promptmeup.shard_format import SCHEMA

PairFilter = Literal["all", "matched"]
"""Every (image, caption) pair, or only those whose caption belongs to the image."""

PLACE = ("shard", "image_offset", "image_size", "json_offset", "json_size", "image_crc", "json_crc")
OPEN_FILES = 128  # a process may usually have 1024 files open, a corpus may have more shards
MAPS = (
    32  # shards of a tenth of a gigabyte: what is mapped counts as resident, though it is the system's cache
)
RESTORE = "restore the shard, or pack the corpus again, then start the same command again"
LABEL_FILES = 64  # a memory map keeps its file open


class DamagedSampleError(ShardError):
    """One sample that cannot be used, in a shard that is otherwise as it was when the run started."""

    def __init__(self, *, shard: str, key: str, offset: int, reason: str) -> None:
        self.shard, self.key, self.offset, self.reason = shard, key, offset, reason
        super().__init__(
            f"{shard}, sample at byte {offset} (key {key}): {reason}; run shards/verify.py, then restore the shard"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _damaged, (self.shard, self.key, self.offset, self.reason)


def _damaged(shard: str, key: str, offset: int, reason: str) -> DamagedSampleError:
    return DamagedSampleError(shard=shard, key=key, offset=offset, reason=reason)


class Stored(NamedTuple):
    """A sample as it is in its shard."""

    sample: int
    """row of the index"""
    image: memoryview
    """the JPEG file"""
    record: dict[str, Any]
    """KEY.json"""


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

    def __init__(self, folder: Path, *, remote: ShardCache | None = None) -> None:
        """`remote`, for shards that are elsewhere: fetches them to `folder`. See `opening.open_split`."""
        self.folder = folder
        self.manifest = shard_format.read_manifest(folder)
        self.remote = remote
        self._written_at: list[int] = []  # by shard; not the clock, which may differ from the file server's
        if remote is None:
            for number in range(len(self.manifest.shards)):
                problem, written_at = self._look(number)
                if problem:
                    raise ShardError(f"{problem}; restore it, or pack the corpus again")
                self._written_at.append(written_at)
        self.index = _load_rows(folder / "index.npy", shard_format.INDEX_DTYPE, self.manifest.samples)
        self.pairs = _load_rows(folder / "pairs.npy", shard_format.PAIR_DTYPE, self.manifest.pairs)
        self.shard_pairs = tuple(entry.pairs for entry in self.manifest.shards)
        """Pairs by shard; those of a shard are adjacent rows of pairs.npy."""
        self.first_pairs = np.cumsum((0, *self.shard_pairs))
        """row of pairs.npy where each shard's begin, and one past the last"""
        self._check_tables()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def _check_tables(self) -> None:
        """Look whether both tables are those of the shards; at some of them, which keeps the tables out of memory."""
        bounds = list(pairwise(self.first_pairs.tolist()))
        for number in range(0, len(bounds), len(bounds) // 64 + 1):
            first, end = bounds[number]
            samples = self.pairs["sample"][first:end][[0, -1]] if first < end else ()
            if any(self.index["shard"][sample] != number for sample in samples):
                raise ShardError(
                    f"{self.folder / 'pairs.npy'}: rows {first} to {end} are not the pairs of "
                    f"{self.manifest.shards[number].name}; pack the corpus again"
                )

    @property
    def location(self) -> str:
        """Where the split really is: its folder, or its URL without a password."""
        return self.remote.remote.shown if self.remote is not None else str(self.folder.resolve())

    def __len__(self) -> int:
        """Return the number of samples (images)."""
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        # Started rather than forked workers open the files again; a pickled memory map would be a copy.
        return _open_split, (self.folder, self.remote)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        files = getattr(self, "_files", {})  # not there when opening failed
        while files:
            os.close(files.popitem()[1])
        getattr(self, "_maps", {}).clear()

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name

    def _look(self, shard: int) -> tuple[str, int]:
        """Return what is wrong with a shard's file as a whole, or nothing; and when it was written to."""
        path, expected = self._path(shard), self.manifest.shards[shard].bytes
        try:
            found = path.stat()
        except FileNotFoundError:
            return f"{path} is missing", 0
        if found.st_size == expected:
            return "", found.st_mtime_ns
        problem = f"{path} has {found.st_size} bytes, the manifest says {expected}: it was changed or not copied whole"
        return problem, found.st_mtime_ns

    def _problem(self, shard: int) -> str:
        """Return what has become of a shard's file since it was opened, or nothing."""
        problem, written_at = self._look(shard)
        if not problem and shard < len(self._written_at) and written_at != self._written_at[shard]:
            return f"{self._path(shard)} was written to after it was opened"
        return problem

    def _file(self, shard: int) -> int:
        """Return an open descriptor. One inherited by a fork does as well: `pread` moves no position."""
        descriptor = self._files.get(shard)
        if descriptor is None:
            descriptor = self._files[shard] = self._open(shard)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return descriptor

    def _map(self, shard: int) -> mmap.mmap:
        """Return the shard as memory; looks at its size each time, since access behind the end would be fatal."""
        mapped = self._maps.get(shard)
        if mapped is None:
            descriptor = self._open(shard)
            mapped = self._maps[shard] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            os.close(descriptor)
            if len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        if mapped.size() != self.manifest.shards[shard].bytes:
            raise ShardError(f"{self._problem(shard)}, while it was being read: {RESTORE}")
        return mapped

    def _open(self, shard: int) -> int:
        try:
            if self.remote is not None:
                entry = self.manifest.shards[shard]
                return self.remote.open(entry.name, size=entry.bytes, sha256=entry.sha256)
            return os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(
                f"cannot open {self._path(shard)}: {error.strerror}; the shard was there when the run started: "
                "restore it, then start the same command again"
            ) from error

    def damaged(self, sample: int, reason: str) -> ShardError:
        """Return the error for a sample whose content is not what was packed.

        It is a `DamagedSampleError`, unless the whole shard has vanished or was changed since the run started.
        """
        row = self.index[sample]
        problem = self._problem(int(row["shard"])) if self.remote is None else ""
        if problem:
            return ShardError(f"{problem}, while it was being read ({reason}): {RESTORE}")
        return DamagedSampleError(
            shard=str(self._path(int(row["shard"]))),
            key=shard_format.key_of(int(row["image_id"])),
            offset=int(row["image_offset"]),
            reason=reason,
        )

    def read(
        self, samples: NDArray[np.int64], *, checksums: bool = True
    ) -> Iterator[Stored | DamagedSampleError]:
        """Yield the samples of these rows of the index; in place of a damaged one, what is wrong with it.

        Args:
            checksums: compare each sample with its CRC-32. Without, photos are views of the mapped file and are
                not copied (10 microseconds instead of 32), but a shard that is cut short, or a disk that
                fails, at the very moment ends the process (SIGBUS) where `pread` gives an error.

        Raises:
            ShardError: a shard has vanished or was changed.
        """
        import orjson  # as all that a step on synthetic tensors does without

        rows = self.index[samples]
        columns = [rows[name].tolist() for name in PLACE]
        maps = {} if checksums else {shard: memoryview(self._map(shard)) for shard in set(columns[0])}
        for sample, shard, start, image_size, json_start, json_size, image_crc, json_crc in zip(
            samples.tolist(), *columns, strict=True
        ):
            text: bytes | memoryview
            try:
                if checksums:
                    size = json_start + json_size - start
                    # one read for both members: KEY.json stands right behind KEY.jpg
                    data = os.pread(self._file(shard), size, start)
                    image, text = memoryview(data)[:image_size], data[json_start - start :]
                    if len(data) != size:
                        raise ValueError(f"{len(data)} of {size} bytes are there")
                    if crc32(image) != image_crc or crc32(text) != json_crc:
                        raise ValueError("the CRC-32 of its bytes is not the index's")
                else:
                    image = maps[shard][start : start + image_size]
                    text = maps[shard][json_start : json_start + json_size]
                record = orjson.loads(text)  # 2.5 us where json.loads takes 10
                if record["schema"] != SCHEMA:
                    raise ValueError(f"format version {record['schema']!r}, this program reads {SCHEMA}")
            except (OSError, ValueError, TypeError, KeyError) as error:
                damaged = self.damaged(sample, _reason(error))
                if not isinstance(damaged, DamagedSampleError):
                    raise damaged from error
                yield damaged
            else:
                yield Stored(sample, image, record)

    def _read_one(self, sample: int) -> Stored:
        found = next(self.read(np.array([sample])))
        if isinstance(found, DamagedSampleError):
            raise found
        return found

    def where(self, sample: int) -> str:
        """Return shard, row and key of a sample, for messages."""
        row = self.index[sample]
        key = shard_format.key_of(int(row["image_id"]))
        return f"{self._path(int(row['shard']))}, sample {row['row']} (key {key})"

    def read_image(self, sample: int) -> bytes:
        """Return the stored JPEG file of row `sample` of the index.

        Raises:
            ShardError: the sample is damaged, or its shard has vanished or was changed.
        """
        return bytes(self._read_one(sample).image)

    def read_json(self, sample: int) -> dict[str, Any]:
        """Return key, image size, captions and boxes of row `sample` of the index; raises as `read_image`."""
        return self._read_one(sample).record

    def matched(self) -> NDArray[np.bool_]:
        """Return, for every pair, whether the caption belongs to the image."""
        return np.asarray(self.pairs["image_id"] == self.pairs["caption_id"])


def _open_split(folder: Path, remote: ShardCache | None) -> PackedSplit:
    return PackedSplit(folder, remote=remote)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    return str(error) if isinstance(error, ValueError) else "its JSON is not a record"


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
        if self.manifest.bank != folder.name:
            raise ShardError(
                f"the soft labels in {folder} are those of bank {self.manifest.bank}: the folder was renamed or "
                "its files come from another; give it its name back, or run launch/label.py again"
            )
        # a small vocabulary has fewer prompts than are kept of a large one
        kept = self.manifest.num_kept
        self._object_dtype = shard_format.label_dtype(min(kept, len(self.manifest.entities)))
        self._image_dtype = shard_format.label_dtype(min(kept, len(self.manifest.relations)))
        self._files = {file.name: file for file in self.manifest.files}
        self._rows = lru_cache(maxsize=LABEL_FILES)(self._load)

    def __reduce__(self) -> tuple[type["LabelReader"], tuple[Path, PackedSplit]]:
        return LabelReader, (self.folder, self.split)

    @property
    def num_kept(self) -> int:
        """T, the entries of a label."""
        return self.manifest.num_kept

    def _load(self, shard: int, kind: str) -> NDArray[Any]:
        entry = self.split.manifest.shards[shard]
        path = shard_format.label_file(self.folder, entry.name, kind)
        if self.split.remote is not None:
            file = self._files[path.name]
            name = path.relative_to(self.split.folder).as_posix()
            self.split.remote.fetch(name, size=file.bytes, sha256=file.sha256)
        if kind == "objects":
            return _load_rows(path, self._object_dtype, entry.boxes)
        return _load_rows(path, self._image_dtype, entry.samples)

    def objects(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids [M, T] and probabilities [M, T] of the sample's M stored objects, in stored order."""
        row = self.split.index[sample]
        start = int(row["box_start"])
        labels = self._rows(int(row["shard"]), "objects")[start : start + int(row["boxes"])]
        return labels["ids"].astype(np.int64), labels["probs"].astype(np.float32)

    def image(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids [T] and probabilities [T] of the sample's image."""
        row = self.split.index[sample]
        label = self._rows(int(row["shard"]), "images")[int(row["row"])]
        return label["ids"].astype(np.int64), label["probs"].astype(np.float32)
