"""Any downstream corpus by its configuration, and what is in it: the one place that knows which kinds there are."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from promptmeup.corpora import extraction_jsonl, mnre, twitter
from promptmeup.corpora.extraction_jsonl import JsonlConfig
from promptmeup.corpora.mnre import MnreConfig
from promptmeup.corpora.twitter import TwitterConfig
from promptmeup.records import RelationInstance, TaggedSentence
from promptmeup.shard_format import file_sha256

Rows = tuple[TaggedSentence, ...] | tuple[RelationInstance, ...]
ExtractionCorpus = Annotated[TwitterConfig | MnreConfig | JsonlConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class Statistics:
    """What one split holds. Two results are comparable only where `sha256` is the same.

    Entities are counted in two ways, which differ where an I- tag follows no tag of its type. The sizes
    that papers print for a data set are B- tags (Twitter-2015: 6166, 1541, 5072). The F1 that they print
    comes from conlleval or seqeval's default mode, for which such an I- begins an entity too.
    """

    sentences: int
    words: int
    entities: dict[str, int]
    """by type: B- tags, which is strict IOB2"""
    entities_lenient: dict[str, int]
    """by type: B- tags and broken I- tags"""
    broken_tags: int
    """I- tags that follow no B- or I- of their type"""
    relations: dict[str, int]
    """by name, the most frequent first"""
    overlapping_spans: int
    """instances whose two spans share a word"""
    images: int
    """distinct photos whose files are there"""
    missing_images: int
    """distinct photos that are named and whose files are absent"""
    without_image: int
    """sentences whose photo is absent, or that name none"""
    crops: int
    missing_crops: int
    sha256: dict[str, str]
    """name of each file of labels -> SHA-256 of its bytes"""


def label_files(corpus: ExtractionCorpus, split: str) -> tuple[Path, ...]:
    """Return the files that say the labels of `split`."""
    if isinstance(corpus, TwitterConfig):
        return twitter.label_files(corpus, split)
    if isinstance(corpus, MnreConfig):
        return mnre.label_files(corpus, split)
    return extraction_jsonl.label_files(corpus, split)


def read(corpus: ExtractionCorpus, split: str) -> Rows:
    """Return what `split` holds, in the file's order.

    Raises:
        CorpusError: a file is absent or a line malformed, which it names.
    """
    if isinstance(corpus, TwitterConfig):
        return twitter.read(corpus, split)
    if isinstance(corpus, MnreConfig):
        return mnre.read(corpus, split)
    return extraction_jsonl.read(corpus, split)


def statistics(corpus: ExtractionCorpus, split: str) -> Statistics:
    """Read `split` and count what is in it.

    Raises:
        CorpusError: as `read`.
    """
    return count(corpus, split, read(corpus, split))


def count(corpus: ExtractionCorpus, split: str, rows: Rows) -> Statistics:
    """Return what is in `split`, whose rows have been read."""
    begins: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    relations: Counter[str] = Counter()
    overlapping = 0
    for row in rows:
        if isinstance(row, TaggedSentence):
            begins.update(tag[2:] for tag in row.tags if tag.startswith("B-"))
            broken.update(_broken(row.tags))
        else:
            relations[row.relation] += 1
            overlapping += row.head.start < row.tail.end and row.tail.start < row.head.end
    named = {row.image_name: row.image for row in rows if row.image_name is not None}
    return Statistics(
        sentences=len(rows),
        words=sum(len(row.words) for row in rows),
        entities=dict(sorted(begins.items())),
        entities_lenient=dict(sorted((begins + broken).items())),
        broken_tags=broken.total(),
        relations=dict(sorted(relations.items(), key=lambda item: (-item[1], item[0]))),
        overlapping_spans=overlapping,
        images=sum(image is not None for image in named.values()),
        missing_images=sum(image is None for image in named.values()),
        without_image=sum(row.image is None for row in rows),
        crops=sum(len(row.crops) for row in rows),
        missing_crops=sum(row.missing_crops for row in rows),
        sha256={path.name: file_sha256(path) for path in label_files(corpus, split)},
    )


def _broken(tags: tuple[str, ...]) -> Iterator[str]:
    """Yield the type of each I- tag that continues nothing."""
    before = "O"
    for tag in tags:
        if tag.startswith("I-") and before[2:] != tag[2:]:
            yield tag[2:]
        before = tag
