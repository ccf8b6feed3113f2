"""Errors of the object detector, made on purpose in a file of boxes (corpora/boxes.py)."""

import json
import random
from pathlib import Path
from typing import Any, Literal

from promptmeup.corpora.boxes import read_box
from promptmeup.corpora.json_files import read_json_lines
from promptmeup.corpora.paths import normal_path
from promptmeup.errors import CorpusError
from promptmeup.study.error_file import ErrorFileConfig, write_error_file

MOVED_BY = (0.25, 0.75)
"""of a box's own width or height"""
RESIZED_BY = 2.0
"""each side becomes at most so many times longer or shorter"""
OTHER_BELOW = 0.5
"""intersection over union with any box of its image below which a box of another image is one in the wrong place"""
_DRAWS = 100

_Json = dict[str, Any]


class BoxErrorsConfig(ErrorFileConfig):
    """Which boxes are wrong, and how."""

    how: Literal["jittered", "swapped", "removed", "shuffled"] = "jittered"
    """moved and resized; replaced by a box of another image; left out; scored so that chance orders an image's boxes"""


def make_box_errors(config: BoxErrorsConfig) -> None:
    """Copy a file of boxes, with errors.

    A jittered box is moved by 25 to 75 % of its width and of its height and resized by a factor of 0.5 to 2 a side. The
    image's size is not in the file: the centre stays where boxes of the image reach, so that something of it is seen.
    A swapped box is drawn from all other images' until it lies on no object of its new image (intersection over union
    below 0.5 with each): images of one kind are laid out alike, and half of the first draws would be right by chance.
    Of 100 that all do, it is the one that overlaps least.
    A shuffled box is no error: its score is such that score times area, by which packing orders boxes and training
    takes the first of them, is a random number.

    Raises:
        CorpusError: the file is absent, or a line is not as described; or no other image has a box to swap for.
        ConfigError: `config.out` cannot be written.
    """
    images = _read(config.source)
    pool = [(image, box) for image, line in images.items() for box in line["boxes"]]
    if config.how == "swapped" and config.rate > 0 and len({image for image, _ in pool}) == 1:
        raise CorpusError(
            f"{config.source}: no image but {pool[0][0]} has boxes to swap for: set how=jittered or how=removed"
        )
    lines = []
    for image, line in images.items():
        places = range(len(line["boxes"]))
        made = [_made(config, image, line["boxes"], place, pool) for place in places]
        lines.append(json.dumps(line | {"boxes": [box for box in made if box is not None]}, sort_keys=True))
    write_error_file(config.out, lines)


def _read(path: Path) -> dict[str, _Json]:
    """Return the lines by normalised path of their image."""
    images: dict[str, _Json] = {}
    for number, line in read_json_lines(
        path, missing="set source to a file of boxes, one JSON line an image"
    ):
        where = f"{path} line {number}"
        image = line.get("image_path") if isinstance(line, dict) else None
        boxes = line.get("boxes") if isinstance(line, dict) else None
        if not isinstance(image, str) or not isinstance(boxes, list):
            raise CorpusError(
                f'{where}: expected {{"image_path": "...", "boxes": [...]}}: correct or remove it'
            )
        for position, box in enumerate(map(read_box, boxes), start=1):
            if box is None or min(box.x1, box.y1) <= 0:
                raise CorpusError(
                    f"{where}: box {position} of {len(boxes)} needs finite numbers x0 < x1, y0 < y1, score, a text "
                    "label, and a part inside the image (x1 and y1 above 0): correct or remove it"
                )
        if images.setdefault(normal_path(image), line) is not line:
            raise CorpusError(f"{where}: {image} has an earlier line: remove one of the two")
    return images


def _made(
    config: BoxErrorsConfig, image: str, boxes: list[_Json], place: int, pool: list[tuple[str, _Json]]
) -> _Json | None:
    """Return what becomes of one of an image's boxes, None where it is left out; `pool` are all images' boxes."""
    rng = random.Random(f"{config.seed}/{image}/{place}")
    box = boxes[place]
    if rng.random() >= config.rate:
        return box
    if config.how == "removed":
        return None
    if config.how == "shuffled":
        return box | {"score": rng.uniform(0.05, 1) * min(map(_area, boxes)) / _area(box)}
    if config.how == "swapped":
        other = _elsewhere(image, boxes, pool, rng)
        return box | {name: other[name] for name in ("x0", "y0", "x1", "y1", "label", "score")}
    jittered = {}
    for low, high in (("x0", "x1"), ("y0", "y1")):
        reach = max(float(other[high]) for other in boxes)
        jittered[low], jittered[high] = _jittered(float(box[low]), float(box[high]), reach, rng)
    return box | jittered


def _elsewhere(image: str, boxes: list[_Json], pool: list[tuple[str, _Json]], rng: random.Random) -> _Json:
    """Return a box of another image that is none of this one's."""
    least: tuple[float, _Json] | None = None
    for _ in range(_DRAWS):
        while (drawn := rng.choice(pool))[0] == image:
            pass
        shared = max(_overlap(drawn[1], box) for box in boxes)
        if least is None or shared < least[0]:
            least = shared, drawn[1]
        if shared < OTHER_BELOW:
            break
    assert least is not None
    return least[1]


def _overlap(a: _Json, b: _Json) -> float:
    """Return the intersection over union of two boxes."""
    width, height = (
        max(0.0, min(float(a[high]), float(b[high])) - max(float(a[low]), float(b[low])))
        for low, high in (("x0", "x1"), ("y0", "y1"))
    )
    return width * height / (_area(a) + _area(b) - width * height)


def _area(box: _Json) -> float:
    return (float(box["x1"]) - float(box["x0"])) * (float(box["y1"]) - float(box["y0"]))


def _jittered(low: float, high: float, reach: float, rng: random.Random) -> tuple[float, float]:
    """Return another place for one side of a box: its centre between 0 and `reach`, and nothing below 0."""
    low = max(low, 0.0)
    side, centre = high - low, (low + high) / 2
    step = rng.choice((-1, 1)) * rng.uniform(*MOVED_BY) * side
    half = side * RESIZED_BY ** rng.uniform(-1, 1) / 2
    inside = [place for place in (centre + step, centre - step) if 0 <= place <= reach]
    # of a side that fills its image, the centre can move by one half alone
    place = inside[0] if inside else min(max(centre + step, 0.0), reach)
    return max(place - half, 0.0), place + half
