"""Detections that a corpus brings with it: one JSON line an image.

    {"image_path": "./guardian/images/0000/000.jpg",
     "boxes": [{"x0": 12, "y0": 8.5, "x1": 90, "y1": 120, "label": "person", "score": 0.93}]}

A photo in a tar is named as in rejects.jsonl: ARCHIVE.tar@OFFSET. Corners are in pixels of the original image with its
EXIF orientation applied. An image without a line has
not been looked at (`Sample.boxes` is None); one with an empty list has, and shows nothing.
"""

import math
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from promptmeup.corpora.json_files import is_text, read_json_lines
from promptmeup.corpora.paths import normal_path
from promptmeup.records import Box, Reject


def read_boxes(
    path: Path, *, wanted: Container[str], reject: Callable[[Reject], None]
) -> Iterator[tuple[str, tuple[Box, ...]]]:
    """Yield each image in `wanted` (normalised paths) that the file names, with its boxes.

    A line or a box that cannot be used is reported as "malformed_boxes" and left out; the image stays.

    Raises:
        CorpusError: the file is absent or unreadable.
    """
    missing = "corpus.boxes names it; write one JSON line an image there, or leave corpus.boxes out"
    found: set[str] = set()
    for number, line in read_json_lines(path, missing=missing):

        def complain(detail: str, number: int = number) -> None:
            reject(Reject(f"{path.name} line {number}", "malformed_boxes", detail, pairs=0, kept=True))

        image = line.get("image_path") if isinstance(line, dict) else None
        entries = line.get("boxes") if isinstance(line, dict) else None
        if not isinstance(image, str) or not is_text(image) or not isinstance(entries, list):
            complain('expected {"image_path": "...", "boxes": [...]}, in UTF-8')
            continue
        image = normal_path(image)
        if image not in wanted:
            continue
        if image in found:
            complain(f"{image} has an earlier line: that one is used")
            continue
        boxes = [read_box(entry) for entry in entries]
        found.add(image)
        if bad := boxes.count(None):
            complain(
                f"{bad} of {len(boxes)} boxes of {image} left out: each needs finite numbers "
                "x0 < x1, y0 < y1, score, and a text label"
            )
        yield image, tuple(box for box in boxes if box is not None)


def read_box(entry: Any) -> Box | None:
    """Return the box that one JSON object describes, or None where it describes none."""
    if not isinstance(entry, dict):
        return None
    try:
        x0, y0, x1, y1, score = (float(entry[name]) for name in ("x0", "y0", "x1", "y1", "score"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    label = entry.get("label")
    if not isinstance(label, str) or not is_text(label):
        return None
    finite = all(math.isfinite(value) for value in (x0, y0, x1, y1, score))
    return Box(x0, y0, x1, y1, label, score) if finite and x0 < x1 and y0 < y1 else None
