"""Pairs of a corpus -> samples: every photo once, with all its captions, however large the corpus is.

The pairs are sorted on disk, in a private temporary SQLite database that goes with the connection: as Python
objects, the captions of a million photos are more than a gigabyte.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from promptmeup.corpora.boxes import read_boxes
from promptmeup.records import Box, Caption, Reject, Sample, photo_name
from promptmeup.shard_format import image_key

_TABLES = """
create table image (number integer primary key, name text unique not null, path text not null, start integer,
                    size integer);
create table pair (number integer primary key, image integer not null, caption_id text not null,
                   text text not null, own_key text not null, item text, claim text,
                   unique (image, caption_id));
create table boxes (name text primary key, boxes text not null) without rowid;
"""


def temporary_database() -> sqlite3.Connection:
    """Return an empty database that uses at most 64 MB of memory and spills into the temporary folder.

    All is one transaction, which nobody will ever commit: a transaction for each row takes ten times as long.
    """
    database = sqlite3.connect("", isolation_level=None)
    for line in (
        "pragma cache_size = -65536",
        "pragma journal_mode = off",
        "pragma synchronous = off",
        "begin",
    ):
        database.execute(line)
    return database


def create_tables(database: sqlite3.Connection, statements: str) -> None:
    """Run `statements`, separated by semicolons; executescript would end the transaction."""
    for statement in statements.split(";"):
        database.execute(statement)


class PairGroups:
    """Collects pairs in any order; `name in groups` says whether the image of that `photo_name` has one."""

    def __init__(self) -> None:
        self._database = temporary_database()
        create_tables(self._database, _TABLES)

    def __contains__(self, name: object) -> bool:
        found = self._database.execute("select 1 from image where name = ?", (name,)).fetchone()
        return found is not None

    def add(
        self,
        image_path: str,
        caption_id: str,
        text: str,
        *,
        own_key: str,
        member: tuple[int, int] | None = None,
        item: str = "",
        claim: str = "",
    ) -> bool:
        """Add a pair; return False where the image has that caption already.

        Args:
            own_key: key of the image that the caption belongs to.
            member: where in the archive `image_path` the image lies.
            item, claim: what a note about the pair names, and what it says; no note without a claim.
        """
        start, size = member or (0, None)
        name = photo_name(image_path, member)
        self._database.execute(
            "insert or ignore into image (name, path, start, size) values (?, ?, ?, ?)",
            (name, image_path, start, size),
        )
        (image,) = self._database.execute("select number from image where name = ?", (name,)).fetchone()
        added = self._database.execute(
            "insert or ignore into pair (image, caption_id, text, own_key, item, claim) "
            "values (?, ?, ?, ?, ?, ?)",
            (image, caption_id, text, own_key, item, claim),
        )
        return added.rowcount == 1

    def add_boxes(self, file: Path, *, reject: Callable[[Reject], None]) -> None:
        """Take the boxes of the images from `file`; call it after the last pair.

        Raises:
            CorpusError: the file is absent or unreadable.
        """
        for name, boxes in read_boxes(file, wanted=self, reject=reject):
            text = json.dumps([asdict(box) for box in boxes])
            self._database.execute("insert into boxes values (?, ?)", (name, text))

    def samples(self) -> Iterator[Sample]:
        """Yield each image with its captions, in the order of their first appearance."""
        self._database.execute("create index if not exists by_image on pair (image, number)")
        rows = self._database.execute(
            "select image.number, path, start, size, boxes, caption_id, text, own_key, item, claim "
            "from image join pair on pair.image = image.number left join boxes using (name) "
            "order by image.number, pair.number"
        )
        for _, group in groupby(rows, itemgetter(0)):
            pairs = list(group)
            _, path, start, size, boxes = pairs[0][:5]
            member = None if size is None else (start, size)
            yield Sample(
                image_key(photo_name(path, member)),
                path,
                tuple(Caption(id, text, own) for *_, id, text, own, _, _ in pairs),
                None if boxes is None else tuple(Box(**box) for box in json.loads(boxes)),
                member,
                tuple(Reject(item, "flag_disagrees", claim, kept=True) for *_, item, claim in pairs if claim),
            )
