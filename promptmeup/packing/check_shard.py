"""What a shard really holds, member by member, beside what shards/README.md promises."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptmeup.shard_format import INDEX_DTYPE, KEY_PATTERN, PAIR_DTYPE, SCHEMA, ShardEntry, key_id

DECODE_EVERY = 20
"""of the photos, one in so many is decoded unless all are"""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and where."""

    check: str
    """snake_case, from a small fixed set"""
    detail: str
    shard: str = ""
    """path of the file"""
    key: str = ""
    offset: int | None = None
    """of the member's content in the shard, in bytes"""

    def __str__(self) -> str:
        key = f", key {self.key}" if self.key else ""
        offset = f", byte {self.offset}" if self.offset is not None else ""
        return f"{self.shard}{key}{offset}: {self.check}: {self.detail}"


class _Span(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    start: int = Field(ge=0)
    end: int
    text: str
    label: str


class _Caption(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: str
    text: str = Field(pattern=r"\S")
    image_key: str = Field(pattern=rf"^{KEY_PATTERN.pattern}$")
    entities: list[_Span]
    nouns: list[_Span]


class _Box(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    x0: float
    y0: float
    x1: float
    y1: float
    label: str
    score: float


class _Record(BaseModel):
    """KEY.json, as shards/README.md states it."""

    model_config = ConfigDict(extra="forbid")
    schema_: int = Field(alias="schema")
    key: str
    image_path: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    original_width: int = Field(gt=0)
    original_height: int = Field(gt=0)
    captions: list[_Caption] = Field(min_length=1)
    boxes: list[_Box]
    boxes_by: str | None
    entities_by: str | None


@dataclass
class Contents:
    """What a shard really holds, and what is wrong with it."""

    findings: list[Finding]
    index: NDArray[Any]
    """as index.npy should say, `shard` 0"""
    pairs: NDArray[Any]
    """as pairs.npy should say, `sample` from 0"""
    bytes_ids: NDArray[np.int64]
    """of each photo, 8 bytes of its content's hash"""
    caption_ids: NDArray[np.int64]
    """of each pair, 8 bytes of the hash of its caption's id"""
    decoded: int


def check_shard(
    task: tuple[Path, ShardEntry], count: Callable[[int], None], *, full: bool
) -> tuple[str, Contents]:
    """Return the shard's name and what is in it; `full`: decode every photo, not one in twenty."""
    folder, entry = task
    path = folder / entry.name
    findings: list[Finding] = []
    index: list[tuple[int, ...]] = []
    pairs: list[tuple[int, ...]] = []
    bytes_ids: list[int] = []
    caption_ids: list[int] = []
    num_boxes = decoded = 0

    def wrong(check: str, detail: str, key: str = "", offset: int | None = None) -> None:
        findings.append(Finding(check, detail, str(path), key, offset))

    if _check_file(path, entry, wrong):
        for row, (image, text, jpeg, record_text) in enumerate(_members(path, wrong)):
            key = image.name.removesuffix(".jpg")
            decode = full or row % DECODE_EVERY == 0
            decoded += decode
            record = _check_sample(key, image, text, jpeg, record_text, wrong, decode=decode)
            place = (image.offset_data, image.size, text.offset_data, text.size)
            sums = (crc32(jpeg), crc32(record_text))
            boxes = len(record.boxes) if record else 0
            image_id = key_id(key) if KEY_PATTERN.fullmatch(key) else 0
            index.append((0, row, *place, *sums, boxes, num_boxes, image_id))
            num_boxes += boxes
            bytes_ids.append(_hash(jpeg))
            for position, caption in enumerate(record.captions if record else ()):
                pairs.append((row, position, image_id, key_id(caption.image_key)))
                caption_ids.append(_hash(caption.id.encode()))
        matched = sum(image_id == caption_id for *_, image_id, caption_id in pairs)
        numbers = (len(index), len(pairs), matched, num_boxes)
        said = (entry.samples, entry.pairs, entry.matched_pairs, entry.boxes)
        if numbers != said:
            wrong("counts", f"{numbers} samples, pairs, matched pairs and boxes, the manifest says {said}")
    count(1)
    return entry.name, Contents(
        findings,
        np.array(index, dtype=INDEX_DTYPE),
        np.array(pairs, dtype=PAIR_DTYPE),
        np.array(bytes_ids, dtype=np.int64),
        np.array(caption_ids, dtype=np.int64),
        decoded,
    )


def _check_file(path: Path, entry: ShardEntry, wrong: Callable[..., None]) -> bool:
    """Check size and hash; return whether the file can be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        wrong("missing_file", str(error.strerror))
        return False
    if size != entry.bytes:
        wrong("size", f"{size} bytes, the manifest says {entry.bytes}")
    if sha256 != entry.sha256:
        wrong("sha256", f"{sha256}, the manifest says {entry.sha256}: the shard was changed or damaged")
    return True


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def _members(
    path: Path, wrong: Callable[..., None]
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo, bytes, bytes]]:
    """Yield the two members of each sample and their contents, as far as the tar goes."""
    waiting: tuple[tarfile.TarInfo, bytes] | None = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    wrong("members", f"{member.name} is no file", offset=member.offset_data)
                    continue
                data = content.read()
                if waiting and member.name == waiting[0].name.removesuffix(".jpg") + ".json":
                    yield waiting[0], member, waiting[1], data
                    waiting = None
                    continue
                if waiting:
                    key = waiting[0].name.removesuffix(".jpg")
                    wrong("members", f"no {key}.json stands behind {key}.jpg", key, waiting[0].offset_data)
                    waiting = None
                if member.name.endswith(".jpg"):
                    waiting = (member, data)
                else:
                    wrong(
                        "members", f"{member.name} does not stand behind its .jpg", offset=member.offset_data
                    )
            if waiting:
                wrong(
                    "members",
                    f"{waiting[0].name} is the last member and has no .json",
                    offset=waiting[0].offset_data,
                )
        with path.open("rb") as file:
            file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
            end = file.read()
        if end.strip(b"\0"):
            wrong("tar", "it does not end as a tar does: cut off")  # tarfile takes that for the end
    except (tarfile.TarError, OSError, EOFError) as error:
        wrong("tar", f"cannot be read further: {error}")


def _check_sample(
    key: str,
    image: tarfile.TarInfo,
    text: tarfile.TarInfo,
    jpeg: bytes,
    record_text: bytes,
    wrong: Callable[..., None],
    *,
    decode: bool,
) -> _Record | None:
    if not KEY_PATTERN.fullmatch(key):
        wrong("key", f"{key!r} is not a key of 16 hexadecimal digits", key, image.offset_data)
    try:
        data = json.loads(record_text)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            wrong("schema", f"format version {schema!r}, this program knows {SCHEMA}", key, text.offset_data)
            return None
        record = _Record.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        wrong("record", f"{place}: {problem['msg']} ({str(problem['input'])[:80]!r})", key, text.offset_data)
        return None
    except (ValueError, RecursionError) as error:
        wrong("json", str(error), key, text.offset_data)
        return None
    if record.key != key:
        wrong("key", f"KEY.json says {record.key}", key, text.offset_data)
    _check_image(key, image.offset_data, jpeg, record, wrong, decode=decode)
    for box in record.boxes:
        if not (0 <= box.x0 < box.x1 <= record.width and 0 <= box.y0 < box.y1 <= record.height):
            inside = f"is not inside {record.width}x{record.height}"
            wrong("box", f"{box.x0, box.y0, box.x1, box.y1} {inside}", key, text.offset_data)
    for caption in record.captions:
        for span in (*caption.entities, *caption.nouns):
            if caption.text[span.start : span.end] != span.text:
                wrong(
                    "span",
                    f"caption {caption.id} has no {span.text!r} at {span.start}",
                    key,
                    text.offset_data,
                )
    return record


def _check_image(
    key: str, offset: int, jpeg: bytes, record: _Record, wrong: Callable[..., None], *, decode: bool
) -> None:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if image.size != (record.width, record.height):
                said = f"{record.width}x{record.height}"
                wrong("image", f"{image.width}x{image.height} pixels, KEY.json says {said}", key, offset)
            if decode:
                image.load()
    except Exception as error:  # Pillow raises nearly anything on damaged files
        detail = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
        wrong("image", f"cannot be decoded: {detail}", key, offset)
