"""NewsCLIPpings annotations over VisualNews images, as their authors lay them out on disk.

    ROOT/visual_news/origin/data.json                [{"id", "caption", "image_path": "./guardian/…", …}]
    ROOT/visual_news/origin/guardian/images/…        image paths are relative to visual_news/origin
    ROOT/news_clippings/data/SUBSET/SPLIT.json       {"annotations": [{"id", "image_id", "falsified", …}]}

`id` names the record whose caption is shown, `image_id` the record whose image is shown. A pair is a true
match iff both records have the same image *file*: several records can share one (five captions of a
photo), so neither the ids nor the `falsified` flag decide.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from promptmeup.config import Config
from promptmeup.corpora.grouping import PairGroups, create_tables, temporary_database
from promptmeup.corpora.json_files import is_text, read_array
from promptmeup.corpora.paths import normal_path
from promptmeup.errors import CorpusError
from promptmeup.records import Reject, Sample
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


_TABLES = """
create table annotation (number integer primary key, caption_id text, image_id text, falsified integer);
create table wanted (id text primary key) without rowid;
create table record (id text primary key, caption text, shown text, path text, problem text) without rowid;
"""
_INSERT_RECORD = """
insert into record select ?, ?, ?, ?, ? where exists (select 1 from wanted where id = ?)
on conflict (id) do update set
    problem = 'record ' || id || ' is there twice, with different captions or images'
    where shown is not excluded.shown or path is not excluded.path or problem is not excluded.problem
"""
_JOIN = """
select a.caption_id, a.image_id, a.falsified,
       c.id, c.caption, c.shown, c.path, c.problem, i.id, i.path, i.problem
from annotation a left join record c on c.id = a.caption_id left join record i on i.id = a.image_id
order by a.number
"""


def image_root(config: NewsClippingsConfig) -> Path:
    """Return the folder that the samples' image paths are relative to."""
    return config.root / ORIGIN


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

    Whatever cannot be used goes to `reject` with a reason, before the first sample: malformed_annotation,
    malformed_record, unknown_caption_id, unknown_image_id, empty_caption, duplicate_pair. The pairs of all
    rejects (`kept` ones apart) and samples add up to the annotations. Kept, and counted all the same:
    malformed_boxes, and flag_disagrees as a sample's note. The images themselves are not looked at.

    Raises:
        CorpusError: a file is absent, not JSON, or not of the expected shape.
    """
    groups = PairGroups()
    with contextlib.closing(temporary_database()) as database:
        create_tables(database, _TABLES)
        _read_annotations(config, database, split=split, reject=reject)
        _read_records(config, database, reject=reject)
        for row in database.execute(_JOIN):
            if refused := _add_pair(groups, row):
                reject(refused)
    if config.boxes:
        groups.add_boxes(config.root / config.boxes, reject=reject)
    yield from groups.samples()


def _expected(config: NewsClippingsConfig) -> str:
    data = config.root / ANNOTATIONS
    subsets = sorted(path.name for path in data.glob("*") if path.is_dir())
    known = f"subsets there: {', '.join(subsets)}; set corpus.subset" if subsets else "no subset is there"
    return (
        "expected the NewsCLIPpings annotations SUBSET/SPLIT.json under "
        f"{data} ({known}, or set corpus.root to the folder that holds {ANNOTATIONS.parts[0]}/)"
    )


def _read_annotations(
    config: NewsClippingsConfig,
    database: sqlite3.Connection,
    *,
    split: str,
    reject: Callable[[Reject], None],
) -> None:
    path = config.root / ANNOTATIONS / config.subset / f"{split}.json"
    annotations = read_array(
        path,
        key="annotations",
        what="an object with a list 'annotations' (NewsCLIPpings' own format)",
        missing=f"expected the annotations of split '{split}'; "
        f"splits there: {', '.join(splits(config)) or 'none'}",
    )
    for number, annotation in enumerate(annotations):
        fields = annotation if isinstance(annotation, dict) else {}
        caption_id, image_id = _id(fields.get("id")), _id(fields.get("image_id"))
        if caption_id is None or image_id is None:
            detail = f"id and image_id must be numbers or text: {str(annotation)[:200]!r}"
            reject(Reject(f"{split}.json annotation {number}", "malformed_annotation", detail))
            continue
        falsified = fields.get("falsified")
        # a flag of another type claims nothing
        row = (number, caption_id, image_id, falsified if isinstance(falsified, bool) else None)
        database.execute("insert into annotation values (?, ?, ?, ?)", row)
        database.execute("insert or ignore into wanted values (?), (?)", (caption_id, image_id))


def _id(value: Any) -> str | None:
    """Return an id as text; 17 and "17" are the same id, true and 17.0 are none."""
    return (
        str(value)
        if isinstance(value, int | str) and not isinstance(value, bool) and is_text(str(value))
        else None
    )


def _read_records(
    config: NewsClippingsConfig, database: sqlite3.Connection, *, reject: Callable[[Reject], None]
) -> None:
    path = config.root / RECORDS
    records = read_array(
        path,
        what="a list of records (VisualNews' own format)",
        missing="expected VisualNews' list of records; set corpus.root to the folder that holds "
        f"{ORIGIN.parts[0]}/",
    )
    for number, fields in enumerate(records):
        record_id = _id(fields.get("id")) if isinstance(fields, dict) else None
        if record_id is None:
            detail = f"a record must be an object with an id: {str(fields)[:200]!r}"
            reject(Reject(f"{path.name} record {number}", "malformed_record", detail, pairs=0))
        else:
            database.execute(_INSERT_RECORD, (record_id, *_record(fields), record_id))


def _record(fields: dict[str, Any]) -> tuple[str | None, str, str, str]:
    """Return caption (None where it is no text), how a message shows it, image path, and what is wrong."""
    path, caption = fields.get("image_path"), fields.get("caption")
    if "caption" not in fields or not isinstance(path, str) or not path or "\0" in path or not is_text(path):
        return None, "", "", f"record {fields['id']} must have a caption and an image_path"
    if not isinstance(caption, str):
        return None, repr(caption), normal_path(path), ""
    if not is_text(caption):
        return None, ascii(caption), normal_path(path), "the caption is not valid Unicode"
    return caption, repr(caption), normal_path(path), ""


def _add_pair(groups: PairGroups, row: tuple[Any, ...]) -> Reject | None:
    """Add one annotation to `groups`, or return why it cannot be used."""
    caption_id, image_id, falsified, *found = row
    known_caption, text, shown, caption_path, caption_problem, known_image, path, image_problem = found
    item = f"caption {caption_id}, image {image_id}"
    if known_caption is None or known_image is None:
        reason, unknown = (
            ("unknown_caption_id", caption_id) if known_caption is None else ("unknown_image_id", image_id)
        )
        return Reject(item, reason, f"{RECORDS.name} has no record {unknown}")
    if problem := caption_problem or image_problem:
        return Reject(item, "malformed_record", problem)
    if text is None or not text.strip():
        return Reject(item, "empty_caption", f"the caption is {shown[:200]}")
    true_match = caption_path == path
    claim = ""
    if falsified is not None and bool(falsified) is true_match:
        files = "the same" if true_match else "different"
        claim = f"falsified is {bool(falsified)}, the two records' image files are {files}"
    if not groups.add(path, caption_id, text, own_key=image_key(caption_path), item=item, claim=claim):
        return Reject(item, "duplicate_pair", f"an earlier annotation shows it with {path}")
    return None
