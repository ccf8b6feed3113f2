"""All shards of a split are done: its index, vocabulary, rejects and, last, its manifest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmeup.packing.entities import VocabularyCounter
from promptmeup.packing.parts import read_part
from promptmeup.packing.rejects import BOX_REASONS, Books, read_rejects, write_rejects
from promptmeup.packing.writer import ShardContents, write_index
from promptmeup.records import Reject
from promptmeup.shard_format import Manifest, describe_split, write_atomically, write_manifest


@dataclass(frozen=True)
class Gathered:
    """What the parts of all shards say together."""

    contents: tuple[ShardContents, ...]
    rejects: tuple[Reject, ...]
    vocabulary: VocabularyCounter
    made_by: dict[str, list[Any]]
    """by stage: everybody who did it, each once"""


def gather_parts(parts: Path, shards: Iterable[str]) -> Gathered:
    """Read the parts of `shards`, in order."""
    contents: list[ShardContents] = []
    rejects: list[Reject] = []
    vocabulary = VocabularyCounter()
    made_by: dict[str, list[Any]] = {}
    for shard in shards:
        part = read_part(parts, shard)
        if part.contents is not None:
            contents.append(part.contents)
        rejects += part.rejects
        for caption, names in part.names:
            vocabulary.add(caption, names)
        for stage, maker in part.made_by.items():
            if maker not in made_by.setdefault(stage, []):
                made_by[stage].append(maker)
    return Gathered(tuple(contents), tuple(rejects), vocabulary, made_by)


def finish_split(
    folder: Path, gathered: Gathered, *, rejects: Sequence[Reject], books: Books, packed_with: dict[str, Any]
) -> Manifest:
    """Write all files of the split but its shards; the manifest last."""
    write_index(folder, gathered.contents)
    if packed_with["entities"] is not None:
        write_atomically(folder / "entities.tsv", gathered.vocabulary.tsv().encode())
    write_rejects(folder / "rejects.jsonl", rejects)
    shards = [contents.entry for contents in gathered.contents]
    manifest = describe_split(folder, shards, rejects=dict(books.pairs), packed_with=packed_with)
    write_manifest(folder, manifest)
    for temporary in folder.glob(".*.tmp"):  # left by processes that were killed
        temporary.unlink(missing_ok=True)
    return manifest


def rejects_after_update(folder: Path, new: Sequence[Reject], *, boxes: bool) -> list[Reject]:
    """Return a split's rejects when it has been brought up to date; `boxes`: with other boxes."""
    old = read_rejects(folder / "rejects.jsonl")
    if not boxes:
        return old
    return [reject for reject in old if reject.reason not in BOX_REASONS] + list(new)
