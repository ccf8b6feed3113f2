"""The on-disk contract of a packed corpus, in one place: names, index, manifest, soft-label files.

    OUT/<split>/shard-000000.tar     KEY.jpg and KEY.json of each sample, sorted; plain WebDataset
    OUT/<split>/index.npy            one row of INDEX_DTYPE a sample: where its members lie
    OUT/<split>/pairs.npy            one row of PAIR_DTYPE a (image, caption) pair: what an epoch is made of
    OUT/<split>/rejects.jsonl        what was left out, one line each with the reason
    OUT/<split>/entities.tsv         entity vocabulary of the captions: name, count, kind
    OUT/<split>/manifest.json        written last: a split without it is not a split
    OUT/<split>/labels/<name>/     soft labels: shard-000000.{objects,images}.npy, manifest.json

shards/README.md states the same for people. Everything that writes or reads these files comes here.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptmeup.errors import ShardError

SCHEMA = 2
IMAGE_SUFFIX = ".jpg"
JSON_SUFFIX = ".json"

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<i4"),
        ("row", "<i4"),  # position of the sample in its shard
        ("image_offset", "<i8"),  # of the member's content, from the start of the tar
        ("image_size", "<i8"),
        ("json_offset", "<i8"),
        ("json_size", "<i8"),
        ("image_crc", "<u4"),  # CRC-32 of the member's content: a tar has no checksum of it
        ("json_crc", "<u4"),
        ("boxes", "<i4"),  # number of boxes in the json: rows of the shard's objects.npy
        ("box_start", "<i8"),  # first of those rows
        ("image_id", "<i8"),
    ]
)
PAIR_DTYPE = np.dtype(
    [
        ("sample", "<i8"),  # row of index.npy
        ("caption", "<i4"),  # position in the json's captions
        ("image_id", "<i8"),
        ("caption_id", "<i8"),  # id of the image of the caption's own record
    ]
)


TABLES = ("index.npy", "pairs.npy", "entities.tsv")
"""What lies beside the shards and is read whole."""

KEY_PATTERN = re.compile(r"[0-9a-f]{16}")


def text_id(text: str) -> str:
    """Return 16 hex digits that stand for `text` (BLAKE2b)."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def image_key(relative_path: str) -> str:
    """Return the key of an image file: 16 hex digits of its path inside the corpus.

    No dots (webdataset would cut the key there) and no dependence on the order of packing.
    """
    return text_id(relative_path)


def key_id(key: str) -> int:
    """Return the key as the signed 64-bit number that travels in batches."""
    return int.from_bytes(bytes.fromhex(key), "big", signed=True)


def key_of(number: int) -> str:
    """Return the key that `key_id` made `number` of."""
    return number.to_bytes(8, "big", signed=True).hex()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def label_dtype(num_kept: int) -> np.dtype[Any]:
    """One soft label: the `num_kept` most probable prompts; their probabilities in float16."""
    return np.dtype([("ids", "<u2", (num_kept,)), ("probs", "<f2", (num_kept,))])


@dataclass(frozen=True)
class FileEntry:
    """A file that a manifest names, so that one that comes from elsewhere can be checked."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    name: str
    samples: int
    pairs: int
    matched_pairs: int
    """pairs whose caption belongs to the image"""
    boxes: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a packed split holds and what made it."""

    split: str
    shards: tuple[ShardEntry, ...]
    fingerprint: str
    """16 hex digits over the shards' hashes: the corpus as every run knows it"""
    samples: int
    pairs: int
    matched_pairs: int
    rejects: dict[str, int]
    """number by reason"""
    tables: tuple[FileEntry, ...]
    """index.npy, pairs.npy and entities.tsv, where they are there"""
    packed_with: dict[str, Any] = field(default_factory=dict)
    """by stage (photos, boxes, entities), None where it was skipped: settings, versions, weights' hashes"""
    schema: int = SCHEMA


def describe_split(
    folder: Path, shards: Sequence[ShardEntry], *, rejects: dict[str, int], packed_with: dict[str, Any]
) -> Manifest:
    """Return the manifest of the split in `folder`, whose tables are written, with the totals of its shards."""
    return Manifest(
        split=folder.name,
        shards=tuple(shards),
        fingerprint=corpus_fingerprint(tuple(shards)),
        samples=sum(entry.samples for entry in shards),
        pairs=sum(entry.pairs for entry in shards),
        matched_pairs=sum(entry.matched_pairs for entry in shards),
        rejects=rejects,
        tables=file_entries(folder, TABLES),
        packed_with=packed_with,
    )


def corpus_fingerprint(shards: tuple[ShardEntry, ...]) -> str:
    """Return 16 hex digits over every shard's name and hash."""
    text = "".join(f"{entry.name} {entry.sha256}\n" for entry in shards)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path`, another one for every process of every machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` is either the old file or the whole new one, even after a power cut."""
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def replace_folder(path: Path, new: Path) -> None:
    """Give the finished folder `new` the name `path`; what had it before is removed."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    write_atomically(path, (text + "\n").encode())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file atomically."""
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_entries(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    """Return size and hash of those files `names` of `folder` that are there."""
    paths = [folder / name for name in names]
    return tuple(FileEntry(p.name, p.stat().st_size, file_sha256(p)) for p in paths if p.exists())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; call it last, after every other file of the split."""
    write_json(folder / "manifest.json", asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of one packed split.

    Raises:
        ShardError: no manifest (packing did not finish, or another folder was meant) or another schema.
    """
    path = folder / "manifest.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        known = sorted(p.parent.name for p in folder.glob("*/manifest.json"))
        way_out = (
            f"it holds the packed splits {', '.join(known)}: name one of them"
            if known
            else "run shards/pack.py, or rerun it if it was stopped"
        )
        raise ShardError(f"{folder} is not a packed split (no manifest.json); {way_out}") from error
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error}; pack the corpus again") from error
    return parse_manifest(content, where=str(path))


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """Return the manifest that the file `where` holds.

    Raises:
        ShardError: it is damaged, or of another schema.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ShardError(f"cannot read {where}: {error}; pack the corpus again") from error
    if data.get("schema") != SCHEMA:
        raise ShardError(
            f"{where} has format version {data.get('schema')!r}, this program reads {SCHEMA}; "
            "pack the corpus again with this version"
        )
    return manifest_of(data)


def manifest_of(data: dict[str, Any]) -> Manifest:
    """Return the manifest that `data`, its JSON, describes."""
    shards = tuple(ShardEntry(**entry) for entry in data["shards"])
    tables = tuple(FileEntry(**entry) for entry in data["tables"])
    return Manifest(**(data | {"shards": shards, "tables": tables}))


def labels_folder(split_folder: Path, name: str) -> Path:
    """`name` is the fingerprint of the bank, and 8 digits of the corpus's."""
    return split_folder / "labels" / name


def finished_labels(split_folder: Path, *, corpus: str | None = None) -> list[Path]:
    """Return the folders of finished soft labels, by name; only those of the split as it is with `corpus`.

    Args:
        corpus: the split's fingerprint.
    """
    folders = sorted(path.parent for path in (split_folder / "labels").glob("*/manifest.json"))
    return [f for f in folders if corpus is None or read_label_manifest(f).corpus == corpus]


def label_file(folder: Path, shard: str, kind: str) -> Path:
    """Path of a shard's soft labels; `kind` is "objects" or "images"."""
    assert kind in ("objects", "images")
    return folder / f"{Path(shard).stem}.{kind}.npy"


@dataclass(frozen=True)
class LabelManifest:
    """What a folder of soft labels holds."""

    bank: str
    """the folder's name: fingerprint of teacher weights, vocabularies, templates and temperature, and corpus"""
    corpus: str
    """fingerprint of the labelled split"""
    num_kept: int
    """entries of a stored label; a bank of fewer prompts stores them all: min(num_kept, prompts)"""
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    made_with: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    """every other file of the folder"""
    schema: int = SCHEMA


def write_label_manifest(folder: Path, manifest: LabelManifest) -> None:
    """Write manifest.json of a labels folder; call it last."""
    write_json(folder / "manifest.json", asdict(manifest))


def read_label_manifest(folder: Path) -> LabelManifest:
    """Read the manifest of a folder of soft labels.

    Raises:
        ShardError: labelling did not finish, or another format version.
    """
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder} holds no finished soft labels (no manifest.json); run launch/label.py"
        ) from error
    except (OSError, ValueError) as error:
        raise ShardError(
            f"cannot read {path} ({error}); copy it again, or delete {folder} and run launch/label.py"
        ) from error
    if data.get("schema") != SCHEMA:
        raise ShardError(
            f"{path} has format version {data.get('schema')!r}, this program reads {SCHEMA}; label again"
        )
    data["entities"], data["relations"] = tuple(data["entities"]), tuple(data["relations"])
    data["files"] = tuple(FileEntry(**entry) for entry in data["files"])
    return LabelManifest(**data)
