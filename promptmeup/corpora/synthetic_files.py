"""What the files of the synthetic world have in common: lines of JSON, and how an object of a scene is written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptmeup.corpora.synthetic_scene import Drawn
from promptmeup.corpora.synthetic_world import Entity, World


def box_entry(drawn: Drawn) -> dict[str, Any]:
    """Return the object as boxes.py reads it."""
    x0, y0, x1, y1 = drawn.box
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "label": drawn.kind, "score": 1.0}


def object_entry(world: World, drawn: Drawn) -> dict[str, Any]:
    """Return the object with the name of whom it shows."""
    return {**box_entry(drawn), "entity": world.name(Entity(drawn.kind, drawn.number))}


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    write_text(path, "\n".join(json.dumps(value, sort_keys=True) for value in values))
