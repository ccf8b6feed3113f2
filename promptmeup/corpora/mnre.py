"""MNRE v2, relations between two mentions in a tweet with its photo, as HVPNeT lays it out.

    ROOT/txt/ours_train.txt, ours_val.txt, ours_test.txt      or in ROOT itself, or under the original names
                                                              mnre_txt/mnre_train.txt, "mnre_val .txt", …
    ROOT/ours_rel2id.json                                     {"None": 0, "/per/per/parent": 1, …}
    ROOT/img_org/SPLIT/NAME.jpg
    ROOT/img_vg/SPLIT/crops/…                                 optional, with ROOT/txt/mre_SPLIT_dict.pth

A line is a Python dict: {'token': […], 'h': {'name': 'Cauayan', 'pos': [13, 14]}, 't': {…}, 'img_id':
'NAME.jpg', 'relation': …}; further keys are left alone. `pos` is [start, end) in words. The spans of 59, 3
and 5 lines overlap; they stay as they are.
"""

import ast
import json
from pathlib import Path
from typing import Any, Literal

from promptmeup.config import Config
from promptmeup.corpora.post_files import (
    Crops,
    PhotoFolder,
    is_words,
    of_split,
    only_file,
    photo_folder,
    spellings,
    text_lines,
    word_span,
)
from promptmeup.errors import CorpusError
from promptmeup.records import RelationInstance, WordSpan

RELATIONS = "ours_rel2id.json"
_FOLDERS = ("txt", "mnre_txt", "")
_EXPECTED = (
    "expected a Python dict {'token': [...], 'h': {'name': ..., 'pos': [start, end]}, 't': {...}, "
    "'img_id': ..., 'relation': ...}"
)


class MnreConfig(Config):
    """Where MNRE lies."""

    kind: Literal["mnre"] = "mnre"
    root: Path
    """folder that holds ours_rel2id.json, txt/ and img_org/"""
    images: Path | None = None
    """folder of SPLIT/NAME.jpg, relative to `root` unless absolute; None: img_org"""
    crops: Path | None = None
    """folder of SPLIT/crops, likewise; None: img_vg"""


def label_files(config: MnreConfig, split: str) -> tuple[Path, ...]:
    """Return the files that say the labels of `split`: its own, and the list of relations.

    Raises:
        CorpusError: one is absent, or there under two names.
    """
    names = [f"ours_{name}.txt" for name in spellings(split)]
    # the original's file of split val has a space before its ending
    names += [f"mnre_{name}{space}.txt" for name in spellings(split) for space in ("", " ")]
    paths = [config.root / folder / name for folder in _FOLDERS for name in names]
    lists = [config.root / folder / RELATIONS for folder in ("", "txt")]
    return (
        only_file(paths, what=f"the label file of split '{split}'"),
        only_file(lists, what="the list of relations"),
    )


def relations(config: MnreConfig, split: str = "train") -> tuple[str, ...]:
    """Return the names of the relations in the order of their ids.

    Raises:
        CorpusError: the list is absent, or no JSON object with the ids 0, 1, 2, …
    """
    _, path = label_files(config, split)
    try:
        ids = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path} cannot be read as JSON: {error}") from error
    numbers = list(ids.values()) if isinstance(ids, dict) else []
    if not numbers or not all(type(number) is int for number in numbers):
        raise CorpusError(f'{path}: expected an object of relations and their ids, {{"None": 0, …}}')
    if sorted(numbers) != list(range(len(numbers))):
        raise CorpusError(
            f"{path}: expected the ids 0 to {len(numbers) - 1}, each once, found {sorted(numbers)}"
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def read(config: MnreConfig, split: str) -> tuple[RelationInstance, ...]:
    """Return the instances of `split` in the file's order; `id` is the line, a photo that is absent is None.

    Raises:
        CorpusError: a file is absent or a line malformed, which it names.
    """
    path, _ = label_files(config, split)
    known = frozenset(relations(config, split))
    images = photo_folder(config.images, [config.root / "img_org"], root=config.root, setting="data.images")
    photos = PhotoFolder(of_split(images, split))
    crops = _crops(config, split, path.parent)
    instances = []
    for number, line in text_lines(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        fields = _fields(line, place)
        words = tuple(fields["token"])
        if fields["relation"] not in known:
            raise CorpusError(
                f"{place}: relation {fields['relation']!r} is none of the {len(known)} in {RELATIONS}"
            )
        # the list of crops counts lines from 0
        there, missing = crops.of(number - 1)
        instances.append(
            RelationInstance(
                id=str(number),
                words=words,
                head=_mention(fields["h"], words, f"{place}: h"),
                tail=_mention(fields["t"], words, f"{place}: t"),
                relation=fields["relation"],
                image_name=fields["img_id"],
                image=photos.find(fields["img_id"], place=place),
                crops=there,
                missing_crops=missing,
            )
        )
    return tuple(instances)


def _crops(config: MnreConfig, split: str, labels: Path) -> Crops:
    usual = [config.root / "img_vg"]
    folder = of_split(photo_folder(config.crops, usual, root=config.root, setting="data.crops"), split)
    lists = [labels / f"mre_{name}_dict.pth" for name in spellings(split)]
    return Crops(folder / "crops" if folder else None, lists)


def _fields(line: str, place: str) -> dict[str, Any]:
    try:
        fields = ast.literal_eval(line)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise CorpusError(f"{place} is no Python literal: {_EXPECTED}, found {line[:80]!r}") from error
    if not isinstance(fields, dict):
        raise CorpusError(f"{place}: {_EXPECTED}, found a {type(fields).__name__}")
    for key in ("token", "h", "t", "img_id", "relation"):
        if key not in fields:
            raise CorpusError(f"{place} has no '{key}': {_EXPECTED}")
    if not is_words(fields["token"]):
        raise CorpusError(f"{place}: 'token' must be a list of words, this is {str(fields['token'])[:80]!r}")
    for key in ("img_id", "relation"):
        if not isinstance(fields[key], str):
            raise CorpusError(f"{place}: '{key}' must be text, this is {str(fields[key])[:80]!r}")
    return fields


def _mention(value: Any, words: tuple[str, ...], place: str) -> WordSpan:
    """Return the span of one mention; its name must say the same, or the span counts in another way."""
    span = word_span(words, value.get("pos")) if isinstance(value, dict) else None
    if span is None:
        raise CorpusError(
            f"{place} must be {{'name': ..., 'pos': [start, end]}} with 0 <= start < end <= {len(words)}, "
            f"this is {str(value)[:80]!r}"
        )
    if value.get("name") != " ".join(span.words):
        raise CorpusError(
            f"{place}.name is {value.get('name')!r}, but words [{span.start}, {span.end}) are "
            f"{' '.join(span.words)!r}: correct the line; the end is the first word behind the mention"
        )
    return span
