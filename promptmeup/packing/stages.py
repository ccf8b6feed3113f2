"""The stages of packing one shard: photos, boxes, entities; each a pass over the drafts of a shard.

What a photo gets must depend on its shard alone, not on who packs it or what was packed before: spaCy and a
detector may round differently in another company. So both see the shard in the same chunks every time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from promptmeup.packing.detector import Detector
from promptmeup.packing.entities import EntityFinder
from promptmeup.packing.images import BadImageError, keep_memory, read_photo
from promptmeup.packing.record import Draft, stored_boxes
from promptmeup.records import Box, Reject, Sample

DETECTOR_CHUNK = 64
"""photos that the detector gets together: bounds the memory"""
SPACY_CHUNK = 256
"""photos whose captions spaCy gets together; with 64 it reads a quarter fewer a second"""

T = TypeVar("T")
Refuse = Callable[[Reject], None]


@dataclass(frozen=True)
class PhotoSettings:
    """How photos are stored."""

    root: Path
    shorter_side: int
    quality: int


def photo_drafts(samples: Iterable[Sample], settings: PhotoSettings, *, reject: Refuse) -> Iterator[Draft]:
    """Yield a draft of every sample whose photo can be read."""
    keep_memory()
    for sample in samples:
        try:
            image = read_photo(
                sample, settings.root, shorter_side=settings.shorter_side, quality=settings.quality
            )
        except BadImageError as bad:
            reject(Reject(sample.name, bad.reason, bad.detail, pairs=len(sample.captions)))
            continue
        for note in sample.notes:
            reject(note)
        yield Draft(sample.key, sample.name, image, sample.captions)


def add_boxes(
    drafts: Iterable[Draft],
    known: dict[str, tuple[Box, ...]],
    detector: Detector | None,
    *,
    reject: Refuse,
) -> Iterator[Draft]:
    """Give each draft its boxes: the corpus's where it is in `known` (by key), else the detector's.

    The detector looks at the stored photo, as training will see it. What is wrong with boxes goes to `reject`.
    """
    for chunk in _chunks(drafts, DETECTOR_CHUNK):
        unknown = [draft for draft in chunk if draft.key not in known]
        found: dict[str, Sequence[Box]] = {}
        if detector is not None:
            all_found = detector.detect([draft.image.open() for draft in unknown])
            found = {draft.key: boxes for draft, boxes in zip(unknown, all_found, strict=True)}
        for draft in chunk:
            pairs, image, dropped = len(draft.captions), draft.image, 0
            if draft.key in known:
                draft.boxes, dropped = stored_boxes(
                    known[draft.key], image, scale_x=image.scale_x, scale_y=image.scale_y
                )
                draft.boxes_by, nothing = "corpus", "the corpus names none"
            elif detector is not None:
                draft.boxes, dropped = stored_boxes(found[draft.key], image)
                draft.boxes_by, nothing = detector.name, "the detector found none"
            else:
                draft.boxes, draft.boxes_by = (), "corpus"
                nothing = "the corpus brings none and no detector is configured"
            if dropped:
                size = f"{image.width}x{image.height}"
                bad = f"{dropped} boxes less than a pixel wide or high inside the image, stored as {size}"
                reject(Reject(draft.name, "bad_box", bad, pairs=pairs, kept=True))
            if not draft.boxes:
                reject(Reject(draft.name, "no_detections", nothing, pairs=pairs, kept=True))
            yield draft


def add_entities(drafts: Iterable[Draft], finder: EntityFinder) -> Iterator[Draft]:
    """Give each draft the entities and nouns of its captions."""
    for chunk in _chunks(drafts, SPACY_CHUNK):
        found = finder.find([caption.text for draft in chunk for caption in draft.captions])
        for draft in chunk:
            draft.found = list(islice(found, len(draft.captions)))
            draft.entities_by = finder.name
            yield draft


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
