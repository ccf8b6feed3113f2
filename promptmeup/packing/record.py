"""What KEY.json says of one image: its captions with entities and nouns, and its boxes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from promptmeup.packing.entities import Found
from promptmeup.packing.images import StoredImage
from promptmeup.records import Box, Caption, Span
from promptmeup.shard_format import SCHEMA

MIN_BOX_SIDE = 1.0
"""pixels of the stored image; a thinner box shows nothing"""


def stored_boxes(
    boxes: Iterable[Box], image: StoredImage, *, scale_x: float = 1.0, scale_y: float = 1.0
) -> tuple[tuple[Box, ...], int]:
    """Scale `boxes` to pixels of the stored `image`, clip them to it and order them, most telling first.

    Returns:
        The boxes by score times area, descending, coordinates rounded to 2 decimals and scores to 4; and
        the number of boxes dropped because less than a pixel of their width or height is inside.
    """
    kept, dropped = [], 0
    for box in boxes:
        x0, x1 = (round(min(max(x * scale_x, 0.0), image.width), 2) for x in (box.x0, box.x1))
        y0, y1 = (round(min(max(y * scale_y, 0.0), image.height), 2) for y in (box.y0, box.y1))
        if x1 - x0 >= MIN_BOX_SIDE and y1 - y0 >= MIN_BOX_SIDE:
            kept.append(Box(x0, y0, x1, y1, box.label, round(box.score, 4)))
        else:
            dropped += 1
    kept.sort(key=lambda b: (-b.score * (b.x1 - b.x0) * (b.y1 - b.y0), b.x0, b.y0, b.x1, b.y1, b.label))
    return tuple(kept), dropped


@dataclass
class Draft:
    """One photo on its way into a shard; the stages fill in boxes, entities and nouns."""

    key: str
    name: str
    """of the photo in the corpus: `image_path` in KEY.json"""
    image: StoredImage
    captions: tuple[Caption, ...]
    boxes: tuple[Box, ...] = ()
    boxes_by: str | None = None
    """who looked for boxes; None: nobody yet"""
    found: Sequence[Found] | None = None
    """entities and nouns of each caption; None: nobody has looked yet"""
    entities_by: str | None = None


def draft_json(draft: Draft) -> bytes:
    """Return the content of KEY.json; the format is in shards/README.md."""
    found = draft.found if draft.found is not None else [((), ())] * len(draft.captions)
    captions = [
        asdict(caption) | {"entities": list(map(asdict, entities)), "nouns": list(map(asdict, nouns))}
        for caption, (entities, nouns) in zip(draft.captions, found, strict=True)
    ]
    record = {
        "schema": SCHEMA,
        "key": draft.key,
        "image_path": draft.name,
        "width": draft.image.width,
        "height": draft.image.height,
        "original_width": draft.image.original_width,
        "original_height": draft.image.original_height,
        "captions": captions,
        "boxes": [asdict(box) for box in draft.boxes],
        "boxes_by": draft.boxes_by,
        "entities_by": draft.entities_by,
    }
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def read_draft(jpeg: bytes, record: dict[str, Any]) -> Draft:
    """Return the draft of which `draft_json` made `record`."""
    sizes = (record[name] for name in ("width", "height", "original_width", "original_height"))
    return Draft(
        record["key"],
        record["image_path"],
        StoredImage(jpeg, *sizes),
        tuple(Caption(c["id"], c["text"], c["image_key"]) for c in record["captions"]),
        tuple(Box(**box) for box in record["boxes"]),
        record["boxes_by"],
        [
            tuple(tuple(Span(**span) for span in c[kind]) for kind in ("entities", "nouns"))  # type: ignore[misc]
            for c in record["captions"]
        ],
        record["entities_by"],
    )
