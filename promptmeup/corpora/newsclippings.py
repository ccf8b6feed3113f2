"""NewsCLIPpings annotations over VisualNews images, as their authors lay them out on disk.

    ROOT/visual_news/origin/data.json                [{"id", "caption", "image_path": "./guardian/…", …}]
    ROOT/visual_news/origin/guardian/images/…        image paths are relative to visual_news/origin
    ROOT/news_clippings/data/SUBSET/SPLIT.json       {"annotations": [{"id", "image_id", "falsified", …}]}

`id` names the record whose caption is shown, `image_id` the record whose image is shown. A pair is a true
match iff both records have the same image *file*: several records can share one (five captions of a
photo), so neither the ids nor the `falsified` flag decide.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from promptmeup.config import Config
from promptmeup.corpora.boxes import read_boxes
from promptmeup.corpora.json_files import is_text, read_json
from promptmeup.corpora.paths import normal_path, refusal
from promptmeup.errors import CorpusError
from promptmeup.records import Caption, Reject, Sample
from promptmeup.shard_format import image_key

ORIGIN = Path("visual_news/origin")
RECORDS = ORIGIN / "data.json"
ANNOTATIONS = Path("news_clippings/data")


class NewsClippingsConfig(Config):
    """Where a NewsCLIPpings corpus lies."""

    kind: Literal["newsclippings"] = "newsclippings"
    root: Path
    """folder that holds visual_news/ and news_clippings/"""
    subset: str = Field("merged_balanced", min_length=1)
    """folder under news_clippings/data/"""
    boxes: Path | None = None
    """JSON lines of known objects (see corpora/boxes.py), relative to `root` unless absolute"""


class _Record(NamedTuple):
    """What is needed of a line of data.json; `problem` says why it cannot be used, if so."""

    caption: object
    path: str
    problem: str


@dataclass(frozen=True)
class _Pair:
    caption: Caption
    item: str
    claim: str
    """what the `falsified` flag wrongly says, or nothing"""


def splits(config: NewsClippingsConfig) -> tuple[str, ...]:
    """Return the names of the splits that lie on disk, sorted.

    Raises:
        CorpusError: the subset's folder is absent; the message lists those that are there.
    """
    folder = config.root / ANNOTATIONS / config.subset
    if not folder.is_dir():
        raise CorpusError(f"{folder} is missing: {_expected(config)}")
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def samples(config: NewsClippingsConfig, *, split: str, reject: Callable[[Reject], None]) -> Iterator[Sample]:
    """Yield each image of `split` with all captions shown with it, in the order of first appearance.

    Whatever cannot be used goes to `reject` with a reason: malformed_annotation, malformed_record,
    unknown_caption_id, unknown_image_id, empty_caption, duplicate_pair, path_escapes_root, missing_image.
    The pairs of all rejects (`kept` ones apart) and samples add up to the annotations. Kept, and counted all
    the same: flag_disagrees, malformed_boxes.

    Raises:
        CorpusError: a file is absent, not JSON, or not of the expected shape.
    """
    annotations = list(_read_annotations(config, split=split, reject=reject))
    wanted = {record_id for annotation in annotations for record_id in annotation[:2]}
    records = _read_records(config, wanted=wanted, reject=reject)
    groups = _group(annotations, records, reject=reject)
    del annotations, wanted, records
    boxes_file = config.root / config.boxes if config.boxes else None
    boxes = read_boxes(boxes_file, wanted=groups, reject=reject) if boxes_file else {}
    origin = config.root / ORIGIN
    real_origin = os.path.realpath(origin)
    for path, pairs in groups.items():
        if refused := refusal(path, folder=origin, real_folder=real_origin):
            reject(Reject(path, *refused, pairs=len(pairs)))
            continue
        for pair in pairs:
            if pair.claim:
                reject(Reject(pair.item, "flag_disagrees", pair.claim, kept=True))
        yield Sample(image_key(path), origin / path, tuple(pair.caption for pair in pairs), boxes.get(path))


def _expected(config: NewsClippingsConfig) -> str:
    data = config.root / ANNOTATIONS
    subsets = sorted(path.name for path in data.glob("*") if path.is_dir())
    known = f"subsets there: {', '.join(subsets)}; set corpus.subset" if subsets else "no subset is there"
    return (
        "expected the NewsCLIPpings annotations SUBSET/SPLIT.json under "
        f"{data} ({known}, or set corpus.root to the folder that holds {ANNOTATIONS.parts[0]}/)"
    )


def _read_annotations(
    config: NewsClippingsConfig, *, split: str, reject: Callable[[Reject], None]
) -> Iterator[tuple[str, str, object]]:
    """Yield (caption's record id, image's record id, falsified flag)."""
    found = splits(config)
    path = config.root / ANNOTATIONS / config.subset / f"{split}.json"
    data = read_json(
        path,
        missing=f"expected the annotations of split '{split}'; splits there: {', '.join(found) or 'none'}",
    )
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise CorpusError(
            f"{path}: the top level must be an object with a list 'annotations' "
            f"(NewsCLIPpings' own format), this is a {type(data).__name__}"
            + (f" with keys {', '.join(sorted(data)) or 'none'}" if isinstance(data, dict) else "")
        )
    for number, annotation in enumerate(data["annotations"]):
        fields = annotation if isinstance(annotation, dict) else {}
        caption_id, image_id = _id(fields.get("id")), _id(fields.get("image_id"))
        if caption_id is None or image_id is None:
            detail = f"id and image_id must be numbers or text: {str(annotation)[:200]!r}"
            reject(Reject(f"{split}.json annotation {number}", "malformed_annotation", detail))
            continue
        yield caption_id, image_id, fields.get("falsified")


def _id(value: Any) -> str | None:
    """Return an id as text; 17 and "17" are the same id, true and 17.0 are none."""
    return (
        str(value)
        if isinstance(value, int | str) and not isinstance(value, bool) and is_text(str(value))
        else None
    )


def _read_records(
    config: NewsClippingsConfig, *, wanted: set[str], reject: Callable[[Reject], None]
) -> dict[str, _Record]:
    path = config.root / RECORDS
    data = read_json(
        path,
        missing="expected VisualNews' list of records; set corpus.root to the folder that holds "
        f"{ORIGIN.parts[0]}/",
    )
    if not isinstance(data, list):
        raise CorpusError(
            f"{path}: the top level must be a list of records (VisualNews' own format), "
            f"this is a {type(data).__name__}"
        )
    records: dict[str, _Record] = {}
    for number, fields in enumerate(data):
        record_id = _id(fields.get("id")) if isinstance(fields, dict) else None
        if record_id is None:
            detail = f"a record must be an object with an id: {str(fields)[:200]!r}"
            reject(Reject(f"{path.name} record {number}", "malformed_record", detail, pairs=0))
        elif record_id in wanted:
            record = _record(fields)
            if records.setdefault(record_id, record) != record:
                problem = f"record {record_id} is there twice, with different captions or images"
                records[record_id] = record._replace(problem=problem)
    return records


def _record(fields: dict[str, Any]) -> _Record:
    path = fields.get("image_path")
    if "caption" not in fields or not isinstance(path, str) or not path or "\0" in path or not is_text(path):
        return _Record("", "", f"record {fields['id']} must have a caption and an image_path")
    caption = fields["caption"]
    problem = "" if not isinstance(caption, str) or is_text(caption) else "the caption is not valid Unicode"
    return _Record(caption, normal_path(path), problem)


def _group(
    annotations: list[tuple[str, str, object]],
    records: dict[str, _Record],
    *,
    reject: Callable[[Reject], None],
) -> dict[str, list[_Pair]]:
    """Return the usable pairs of each image file."""
    groups: dict[str, list[_Pair]] = {}
    seen: set[tuple[str, str]] = set()
    for caption_id, image_id, falsified in annotations:
        item = f"caption {caption_id}, image {image_id}"
        caption, image = records.get(caption_id), records.get(image_id)
        if caption is None or image is None:
            reason, unknown = (
                ("unknown_image_id", image_id) if caption else ("unknown_caption_id", caption_id)
            )
            reject(Reject(item, reason, f"{RECORDS.name} has no record {unknown}"))
        elif problem := caption.problem or image.problem:
            reject(Reject(item, "malformed_record", problem))
        elif not isinstance(caption.caption, str) or not caption.caption.strip():
            reject(Reject(item, "empty_caption", f"the caption is {caption.caption!r}"))
        elif (image.path, caption_id) in seen:
            reject(Reject(item, "duplicate_pair", f"an earlier annotation shows it with {image.path}"))
        else:
            seen.add((image.path, caption_id))
            true_match = caption.path == image.path
            claim = ""
            if falsified is true_match:  # a bool on both sides: a flag of another type claims nothing
                files = "the same" if true_match else "different"
                claim = f"falsified is {falsified}, the two records' image files are {files}"
            pair = _Pair(Caption(caption_id, caption.caption, image_key(caption.path)), item, claim)
            groups.setdefault(image.path, []).append(pair)
    return groups
