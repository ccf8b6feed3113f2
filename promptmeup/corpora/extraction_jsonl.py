"""Sentences of one's own for the two downstream tasks: a JSON object a line.

    {"id": "a1", "words": ["Ada", "Byron", "writes"], "tags": ["B-PER", "I-PER", "O"], "image": "photos/a1.jpg"}
    {"id": "b1", "words": ["Ada", "in", "London"], "head": [0, 1], "tail": [2, 3], "relation": "in", "image": null}

Spans are [start, end) in words. `image` is relative to the root, or null. A line may bring "boxes", a list of
objects as in corpora/boxes.py, or "crops", pictures of them, as paths like `image`; further keys are left alone.
Files that call these things otherwise are read with `keys`, such as {words: tokens, tags: label, image: image_id},
and photos that lie elsewhere with `images`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from promptmeup.config import Config
from promptmeup.corpora.boxes import read_box
from promptmeup.corpora.json_files import is_text, read_json_lines
from promptmeup.corpora.post_files import (
    PhotoFolder,
    is_tag,
    is_words,
    of_split,
    photo_folder,
    word_span,
)
from promptmeup.errors import CorpusError
from promptmeup.records import Box, RelationInstance, TaggedSentence, WordSpan

Key = Literal["id", "words", "tags", "image", "boxes", "crops", "head", "tail", "relation"]


class JsonlConfig(Config):
    """Where the JSON lines lie, and for which task."""

    kind: Literal["jsonl"] = "jsonl"
    task: Literal["entities", "relations"]
    root: Path
    files: dict[str, str] = Field(min_length=1)
    """split -> file under `root`, such as {train: "train.jsonl"}"""
    keys: dict[Key, str] = Field(default_factory=dict)
    """our name -> what the files call it, where that is another"""
    images: Path | None = None
    """folder that `image` is relative to, or of such folders by split; relative to `root`; None: `root`"""


def label_files(config: JsonlConfig, split: str) -> tuple[Path, ...]:
    """Return the one file with the labels of `split`.

    Raises:
        CorpusError: the configuration names none.
    """
    if split not in config.files:
        raise CorpusError(f"there is no split '{split}': data.files names {', '.join(sorted(config.files))}")
    return (config.root / config.files[split],)


def read(config: JsonlConfig, split: str) -> tuple[TaggedSentence, ...] | tuple[RelationInstance, ...]:
    """Return what stands in the file of `split`, in its order; a photo whose file is absent is None.

    Raises:
        CorpusError: the file is absent or a line malformed; it names file, line and key.
    """
    if config.task == "entities":
        return tuple(_sentence(*row) for row in _rows(config, split))
    return tuple(_instance(*row) for row in _rows(config, split))


def _rows(config: JsonlConfig, split: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (file and line, all fields, what the two tasks have in common) of each line."""
    (path,) = label_files(config, split)
    folder = photo_folder(config.images, [config.root], root=config.root, setting="images")
    photos = PhotoFolder(of_split(folder, split) if config.images else folder)
    lines: dict[str, int] = {}
    for number, fields in read_json_lines(path, missing=f"data.files.{split} names it"):
        place = f"{path} line {number}"
        if not isinstance(fields, dict):
            raise CorpusError(f"{place}: expected a JSON object")
        fields |= {own: fields[theirs] for own, theirs in config.keys.items() if theirs in fields}
        common = _common(place, fields, photos)
        earlier = lines.setdefault(common["id"], number)
        if earlier != number:
            raise CorpusError(f'{place}: "id" is {common["id"]!r}, as in line {earlier}; make them differ')
        yield place, fields, common


def _common(place: str, fields: dict[str, Any], photos: PhotoFolder) -> dict[str, Any]:
    own_id = _value(place, fields, "id")
    if not is_text(own_id) or not own_id:
        _refuse(place, "id", "text that is not empty", own_id)
    words = _value(place, fields, "words")
    if not is_words(words):
        _refuse(place, "words", "a list of words, none of them empty", words)
    name = _value(place, fields, "image")
    if name is not None and not isinstance(name, str):
        _refuse(place, "image", "a path relative to data.root, or null", name)
    image = None if name is None else photos.find(name, place=f'{place}: "image"')
    crops = fields.get("crops") or []
    if not isinstance(crops, list) or not all(isinstance(crop, str) for crop in crops):
        _refuse(place, "crops", "a list of paths relative to data.root", crops)
    there = [path for crop in crops if (path := photos.find(crop, place=f'{place}: "crops"')) is not None]
    return {
        "id": own_id,
        "words": tuple(words),
        "image_name": name,
        "image": image,
        "boxes": _boxes(place, fields.get("boxes")),
        "crops": tuple(there),
        "missing_crops": len(crops) - len(there),
    }


def _boxes(place: str, entries: Any) -> tuple[Box, ...] | None:
    if entries is None:
        return None
    boxes = [read_box(entry) for entry in entries] if isinstance(entries, list) else [None]
    if None in boxes:
        expected = "a list of objects with numbers x0 < x1, y0 < y1, score, and a text label"
        _refuse(place, "boxes", expected, entries)
    return tuple(box for box in boxes if box is not None)


def _sentence(place: str, fields: dict[str, Any], common: dict[str, Any]) -> TaggedSentence:
    tags = _value(place, fields, "tags")
    if not isinstance(tags, list) or not all(is_tag(tag) for tag in tags):
        _refuse(place, "tags", "a list of O, B-TYPE and I-TYPE", tags)
    if len(tags) != len(common["words"]):
        raise CorpusError(f'{place}: "tags" has {len(tags)} entries for {len(common["words"])} "words"')
    return TaggedSentence(**common, tags=tuple(tags))


def _instance(place: str, fields: dict[str, Any], common: dict[str, Any]) -> RelationInstance:
    relation = _value(place, fields, "relation")
    if not is_text(relation) or not relation:
        _refuse(place, "relation", "text that is not empty", relation)
    head, tail = (_span(place, fields, key, common["words"]) for key in ("head", "tail"))
    return RelationInstance(**common, head=head, tail=tail, relation=relation)


def _span(place: str, fields: dict[str, Any], key: str, words: tuple[str, ...]) -> WordSpan:
    value = _value(place, fields, key)
    span = word_span(words, value)
    if span is None:
        _refuse(place, key, f"[start, end] in words with 0 <= start < end <= {len(words)}", value)
    return span


def _value(place: str, fields: dict[str, Any], key: str) -> Any:
    if key not in fields:
        raise CorpusError(f'{place} has no "{key}"; its keys are {", ".join(fields) or "none"}')
    return fields[key]


def _refuse(place: str, key: str, expected: str, value: Any) -> NoReturn:
    raise CorpusError(f'{place}: "{key}" must be {expected}; this is {ascii(value)[:100]}')
