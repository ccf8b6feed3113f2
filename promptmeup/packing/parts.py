"""What is known of each finished shard, on disk, until the split is finished: the state of a resumable job.

.packing/parts-ID/shard-000000.json   written after its tar; the shard is done if, and only if, it is there
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptmeup.packing.entities import Names
from promptmeup.packing.writer import ShardContents
from promptmeup.records import Reject
from promptmeup.shard_format import INDEX_DTYPE, PAIR_DTYPE, ShardEntry, write_atomically


@dataclass(frozen=True)
class Part:
    """One finished shard; `contents` is None where every photo of it was rejected, and no tar was written."""

    contents: ShardContents | None
    rejects: tuple[Reject, ...]
    names: tuple[tuple[str, Names], ...]
    """(caption id, its entities and nouns)"""
    made_by: dict[str, Any]
    """by stage: who did it"""

    @property
    def pairs(self) -> int:
        return len(self.contents.pairs) if self.contents else 0


def part_path(parts: Path, shard: str) -> Path:
    return parts / f"{Path(shard).stem}.json"


def write_part(parts: Path, shard: str, part: Part) -> None:
    """Mark `shard` as done; call it when its tar has its name."""
    contents = part.contents
    described = {
        "contents": contents
        and {
            "entry": asdict(contents.entry),
            "index": contents.index.tolist(),
            "pairs": contents.pairs.tolist(),
        },
        "rejects": [asdict(reject) for reject in part.rejects],
        "names": part.names,
        "made_by": part.made_by,
    }
    # the first line alone tells whether the shard is done
    lines = ({"bytes": contents.entry.bytes if contents else None}, described)
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    write_atomically(part_path(parts, shard), text.encode())


def read_part(parts: Path, shard: str) -> Part:
    """Return what is known of a `shard` that is done."""
    with part_path(parts, shard).open(encoding="utf-8", newline="\n") as file:
        file.readline()
        found = json.loads(file.readline())
    contents = found["contents"]
    if contents is not None:
        contents = ShardContents(
            ShardEntry(**contents["entry"]),
            np.array([tuple(row) for row in contents["index"]], dtype=INDEX_DTYPE),
            np.array([tuple(row) for row in contents["pairs"]], dtype=PAIR_DTYPE),
        )
    return Part(
        contents,
        tuple(Reject(**reject) for reject in found["rejects"]),
        tuple((caption, tuple((name, kind) for name, kind in names)) for caption, names in found["names"]),
        found["made_by"],
    )


def is_done(folder: Path, parts: Path, shard: str) -> bool:
    """Return whether `shard` needs nothing more: its part is there, and a tar of the size that it says."""
    try:
        with part_path(parts, shard).open(encoding="utf-8", newline="\n") as file:
            size = json.loads(file.readline())["bytes"]
        return size is None or (folder / shard).stat().st_size == size
    except FileNotFoundError:
        return False


def missing_shards(folder: Path, parts: Path, shards: Iterable[str]) -> list[str]:
    """Return those of `shards` that are not done."""
    return [shard for shard in shards if not is_done(folder, parts, shard)]
