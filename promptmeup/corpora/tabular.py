"""Anybody's own corpus: photos and captions in a table, or what img2dataset downloaded.

    ROOT/train.jsonl      {"image": "photos/1.jpg", "caption": "..."} a line; a list of captions as well
    ROOT/train.csv, .tsv  a header line, then one caption a row
    ROOT/train.parquet    columns of text, or of lists of text
    ROOT/*.tar            img2dataset's webdataset output: KEY.jpg, KEY.txt and KEY.json in uncompressed tars
    ROOT/00000            a folder of img2dataset's "files" output: KEY.jpg, KEY.txt and KEY.json

Rows that name the same image are one photo with several captions. Image paths are relative to ROOT.
"""

import csv
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.corpora.grouping import PairGroups
from promptmeup.corpora.json_files import is_text, read_json_lines
from promptmeup.corpora.paths import normal_path
from promptmeup.errors import CorpusError
from promptmeup.records import Reject, Sample, photo_name
from promptmeup.shard_format import image_key, text_id

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VAL = "val"
_LONGEST_END = 1 << 20
"""bytes of a tar's last zeros: usual are 10 KiB at most"""


class TabularConfig(Config):
    """Where the tables lie, and which columns hold what."""

    kind: Literal["tabular"] = "tabular"
    root: Path
    files: dict[str, str] = Field(min_length=1)
    """split -> file, folder or pattern under `root`, such as {train: "train.jsonl"} or {train: "*.tar"}"""
    image: str = Field("image", min_length=1)
    """column of the image's path, relative to `root`"""
    caption: str = Field("caption", min_length=1)
    """column of the caption, or of a list of captions"""
    own_image: str | None = None
    """column of the path of the image that the caption belongs to, where rows may be mismatched on purpose"""
    val_share: float = Field(0.0, ge=0.0, lt=1.0)
    """share of the images of split train that are split val instead, chosen by their names; not with `own_image`"""
    boxes: Path | None = None
    """JSON lines of known objects (see corpora/boxes.py), relative to `root` unless absolute"""

    @model_validator(mode="after")
    def _val_comes_from_one_place(self) -> Self:
        if self.val_share and (VAL in self.files or "train" not in self.files):
            raise ValueError(
                "val_share takes images from files.train for a split val: give no files.val with it"
            )
        if self.val_share and self.own_image:
            raise ValueError(
                "val_share chooses images, and a caption that own_image gives to two of them would be in both splits: "
                "write two tables, and give files.val"
            )
        return self


@dataclass
class _Row:
    """One row of a table, or one sample of img2dataset."""

    place: str
    """for messages: file and line"""
    image: Any
    captions: Any
    own_image: Any = None
    member: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.place = _printable(self.place)


def image_root(config: TabularConfig) -> Path:
    """Return the folder that the samples' image paths are relative to."""
    return config.root


def splits(config: TabularConfig) -> tuple[str, ...]:
    """Return the names of the splits, sorted."""
    return tuple(sorted({*config.files, *([VAL] if config.val_share else [])}))


def samples(config: TabularConfig, *, split: str, reject: Callable[[Reject], None]) -> Iterator[Sample]:
    """Yield each image of `split` with all its captions, in the order of first appearance.

    Whatever cannot be used goes to `reject` with a reason, before the first sample: malformed_record,
    empty_caption, duplicate_pair; kept: malformed_boxes. The images themselves are not looked at.

    Raises:
        CorpusError: a file is absent, or has not the columns.
    """
    groups = PairGroups()
    is_share = split == VAL and config.val_share > 0
    # what has no photo is train's: a share of a few percent would be refused for all that the table lost
    reject_photo = _ignore if is_share else reject
    for path in _files(config, "train" if is_share else split):
        for row in _rows(path, config, reject_photo):
            if _has_photo(row, config, reject_photo):
                _add_row(groups, row, config, split=split, reject=reject)
    if config.boxes:
        groups.add_boxes(config.root / config.boxes, reject=reject)
    yield from groups.samples()


def _files(config: TabularConfig, split: str) -> list[Path]:
    pattern = config.files[split]
    exact = config.root / pattern
    if exact.exists():
        return [exact]
    # pathlib refuses absolute patterns
    found = [] if Path(pattern).is_absolute() else sorted(config.root.glob(pattern))
    if not found:
        there = sorted(path.name for path in config.root.glob("*"))[:10]
        raise CorpusError(
            f"corpus.files.{split}: nothing matches {exact}; in {config.root} there are "
            f"{', '.join(there) or 'no files (is corpus.root right?)'}"
        )
    return found


def _rows(path: Path, config: TabularConfig, reject: Callable[[Reject], None]) -> Iterator[_Row]:
    if (path.is_dir() or path.suffix == ".tar") and not path.is_relative_to(config.root):
        raise CorpusError(f"{path} is not under {config.root}; set corpus.root to a folder that holds it")
    if path.is_dir():
        return _folder_rows(path, config)
    readers: dict[str, Callable[[Path, TabularConfig], Iterator[_Row]]] = {
        ".jsonl": _json_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": _parquet_rows,
        ".tar": partial(_tar_rows, reject=reject),
    }
    if path.suffix not in readers:
        raise CorpusError(
            f"{path} is no table that can be read: expected {', '.join(readers)}, or a folder of img2dataset"
        )
    return readers[path.suffix](path, config)


def _row(place: str, values: list[Any]) -> _Row:
    return _Row(place, values[0], values[1], values[2] if len(values) > 2 else None)


def _columns(config: TabularConfig) -> list[str]:
    return [config.image, config.caption, *([config.own_image] if config.own_image else [])]


def _json_rows(path: Path, config: TabularConfig) -> Iterator[_Row]:
    for number, line in read_json_lines(path, missing="corpus.files names it"):
        fields = line if isinstance(line, dict) else {}
        yield _row(f"{path.name} line {number}", [fields.get(name) for name in _columns(config)])


def _csv_rows(path: Path, config: TabularConfig) -> Iterator[_Row]:
    csv.field_size_limit(sys.maxsize)  # a caption may have 10,000 words
    # bytes that are no UTF-8 become lone surrogates, which are counted as a malformed row and not a crash
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: a lone quote at the beginning of a field would take in all rows up to the next one
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            _require(path, reader.fieldnames or [], config)
            for fields in reader:
                values = [fields[name] for name in _columns(config)]
                yield _row(f"{path.name} line {reader.line_num}", values)
        except csv.Error as error:
            raise CorpusError(
                f"{path} from line {reader.line_num + 1} on: {error}; a field that begins with a quotation mark is "
                'quoted as a whole, and its own marks are doubled ("""The king"" he said"): write the file again as CSV'
            ) from error


def _parquet_rows(path: Path, config: TabularConfig) -> Iterator[_Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _require(path, file.schema_arrow.names, config)
            kind = file.schema_arrow.field(config.image).type
            if (
                pyarrow.types.is_struct(kind)
                or pyarrow.types.is_binary(kind)
                or pyarrow.types.is_large_binary(kind)
            ):
                raise CorpusError(
                    f"{path}: column '{config.image}' (corpus.image) holds {kind}, the photos themselves, and must "
                    "hold their paths: write them into files, or into tars as img2dataset does"
                )
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=_columns(config)):
                for values in zip(*(batch[name].to_pylist() for name in _columns(config)), strict=True):
                    number += 1
                    yield _row(f"{path.name} row {number}", list(values))
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"cannot read {path}: {error}; was it copied completely?") from error


def _require(path: Path, there: Any, config: TabularConfig) -> None:
    names = ("image", "caption", "own_image")
    for setting, column in zip(names, _columns(config), strict=False):
        if column not in there:
            raise CorpusError(
                f"{path} has no column '{column}' (corpus.{setting}); it has {', '.join(map(str, there)) or 'none'}"
            )


def _folder_rows(folder: Path, config: TabularConfig) -> Iterator[_Row]:
    """Yield every image of a folder tree that has a caption beside it."""
    for image in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        texts = {
            suffix: image.with_suffix(suffix).read_bytes()
            for suffix in (".txt", ".json")
            if image.with_suffix(suffix).is_file()
        }
        name = image.relative_to(config.root).as_posix()
        yield _Row(name, name, _caption(texts.get(".txt"), texts.get(".json"), config))


def _tar_rows(path: Path, config: TabularConfig, *, reject: Callable[[Reject], None]) -> Iterator[_Row]:
    """Yield every sample of a tar of img2dataset; its members stand together, in any order."""
    name = path.relative_to(config.root).as_posix()
    stem = ""
    members: dict[str, Any] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                own_stem, _, suffix = member.name.rpartition(".")
                if own_stem != stem and members:
                    yield from _tar_sample(name, stem, members, config)
                    members = {}
                stem = own_stem
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    members["image"] = (member.offset_data, member.size)
                elif suffix in ("txt", "json") and (content := tar.extractfile(member)):
                    members[suffix] = content.read()
            _check_end(file, tar.offset)
    except tarfile.ReadError as error:
        detail = f"{error}: cut off, or compressed? What stands behind is not packed"
        reject(Reject(_printable(name), "malformed_record", detail))
    if members:
        yield from _tar_sample(name, stem, members, config)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError unless an archive's end stands at `offset`: tarfile takes a damaged header for it.

    That is two blocks of zeros or more; many more are the hole of a download that was interrupted.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    rest = file.read(_LONGEST_END + 1)
    if not 1024 <= len(rest) <= _LONGEST_END or rest.strip(b"\0"):
        raise tarfile.ReadError(f"no header and no end at byte {offset} of {size}")


def _tar_sample(tar: str, stem: str, members: dict[str, Any], config: TabularConfig) -> Iterator[_Row]:
    caption = _caption(members.get("txt"), members.get("json"), config)
    image = members.get("image")
    yield _Row(f"{tar}: {stem}", tar if image else None, caption, member=image)


def _caption(text: bytes | None, record: bytes | None, config: TabularConfig) -> Any:
    """Return the caption of img2dataset's KEY.txt, else of KEY.json; None where there is neither."""
    try:
        if text is not None:
            return text.decode()
        fields = json.loads(record) if record is not None else {}
    except ValueError:
        return None
    return fields.get(config.caption) if isinstance(fields, dict) else None


def _ignore(reject: Reject) -> None:
    """Say nothing of a row that is another split's."""


def _has_photo(row: _Row, config: TabularConfig, reject: Callable[[Reject], None]) -> bool:
    if _is_path(row.image) and (not config.own_image or _is_path(row.own_image)):
        return True
    images = ", ".join(ascii(image)[:100] for image in (row.image, row.own_image) if image is not None)
    detail = f"needs an image path and a caption, has {images or None} and {str(row.captions)[:100]!r}"
    reject(Reject(row.place, "malformed_record", _printable(detail)))
    return False


def _add_row(
    groups: PairGroups, row: _Row, config: TabularConfig, *, split: str, reject: Callable[[Reject], None]
) -> None:
    path = normal_path(row.image)
    name = photo_name(path, row.member)
    if config.val_share and split in ("train", VAL) and _is_val(name, config.val_share) != (split == VAL):
        return
    own_key = image_key(normal_path(row.own_image) if config.own_image else name)
    captions = row.captions if isinstance(row.captions, list) else [row.captions]
    if not captions:
        reject(Reject(row.place, "empty_caption", "an empty list of captions", pairs=0))
    for text in captions:
        if text is None or (isinstance(text, str) and not text.strip()):
            reject(Reject(row.place, "empty_caption", f"the caption is {text!r}"))
        elif not is_text(text):
            reject(Reject(row.place, "malformed_record", f"the caption is no text: {ascii(text)[:200]}"))
        else:
            caption_id = text_id(f"{own_key}\n{text}")
            if not groups.add(path, caption_id, text, own_key=own_key, member=row.member):
                detail = f"an earlier row shows the same caption with {name}"
                reject(Reject(row.place, "duplicate_pair", detail))


def _is_path(value: Any) -> bool:
    return is_text(value) and bool(value.strip()) and "\0" not in value


def _is_val(name: str, share: float) -> bool:
    return int(text_id(f"val\n{name}"), 16) < share * 2.0**64


def _printable(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold written out."""
    return text.encode(errors="backslashreplace").decode()
