"""What KEY.json says of one image: its captions with entities and nouns, and its boxes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from promptmeup.packing.entities import Found
from promptmeup.packing.images import StoredImage
from promptmeup.records import Box, Sample
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


def sample_json(
    sample: Sample, image: StoredImage, *, image_path: str, boxes: Sequence[Box], found: Sequence[Found]
) -> bytes:
    """Return the content of KEY.json; `found` is one entry a caption. The format is in shards/README.md."""
    captions = [
        asdict(caption) | {"entities": list(map(asdict, entities)), "nouns": list(map(asdict, nouns))}
        for caption, (entities, nouns) in zip(sample.captions, found, strict=True)
    ]
    record = {
        "schema": SCHEMA,
        "key": sample.key,
        "image_path": image_path,
        "width": image.width,
        "height": image.height,
        "captions": captions,
        "boxes": [asdict(box) for box in boxes],
    }
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
