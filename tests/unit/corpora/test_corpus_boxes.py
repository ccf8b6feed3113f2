"""Reading the boxes that a corpus brings."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptmeup.corpora.boxes import read_boxes
from promptmeup.records import Box, Reject

GOOD = {"x0": 1, "y0": 2, "x1": 3.5, "y1": 4, "label": "dog", "score": 0.75}


def read(path: Path, lines: list[str]) -> tuple[dict[str, tuple[Box, ...]], list[Reject]]:
    path.write_text("\n".join(lines))
    rejects: list[Reject] = []
    return dict(read_boxes(path, wanted={"a.jpg", "b.jpg"}, reject=rejects.append)), rejects


def test_only_wanted_images_are_kept_and_paths_are_normalised(tmp_path: Path) -> None:
    lines = [json.dumps({"image_path": name, "boxes": [GOOD]}) for name in (".//a.jpg", "other.jpg")]
    lines += ["", json.dumps({"image_path": "b.jpg", "boxes": []})]
    found, rejects = read(tmp_path / "boxes.jsonl", lines)
    assert found == {"a.jpg": (Box(1.0, 2.0, 3.5, 4.0, "dog", 0.75),), "b.jpg": ()}
    assert rejects == []


@pytest.mark.parametrize(
    "change",
    [
        {"x1": 1},
        {"y1": 1},
        {"x0": None},
        {"x0": float("nan")},
        {"score": float("inf")},
        {"x1": 10**400},
        {"label": 3},
        {"label": "\ud800"},
    ],
)
def test_a_bad_box_is_left_out_and_counted(tmp_path: Path, change: dict[str, Any]) -> None:
    line = json.dumps({"image_path": "a.jpg", "boxes": [{**GOOD, **change}, GOOD, {}]})
    found, rejects = read(tmp_path / "boxes.jsonl", [line])
    assert found == {"a.jpg": (Box(1.0, 2.0, 3.5, 4.0, "dog", 0.75),)}
    assert [(r.item, r.reason, r.pairs, r.kept) for r in rejects] == [
        ("boxes.jsonl line 1", "malformed_boxes", 0, True)
    ]
    assert "2 of 3 boxes of a.jpg" in rejects[0].detail


@pytest.mark.parametrize("line", ["{", "[]", '{"image_path": "a.jpg"}', '{"image_path": 1, "boxes": []}'])
def test_a_bad_line_is_counted_with_its_number(tmp_path: Path, line: str) -> None:
    good = json.dumps({"image_path": "b.jpg", "boxes": [GOOD]})
    found, rejects = read(tmp_path / "boxes.jsonl", [line, good])
    assert list(found) == ["b.jpg"]
    assert [(r.item, r.reason) for r in rejects] == [("boxes.jsonl line 1", "malformed_boxes")]


def test_a_second_line_of_an_image_does_not_replace_the_first(tmp_path: Path) -> None:
    lines = [json.dumps({"image_path": "a.jpg", "boxes": boxes}) for boxes in ([GOOD], [])]
    found, rejects = read(tmp_path / "boxes.jsonl", lines)
    assert len(found["a.jpg"]) == 1
    assert rejects[0].item == "boxes.jsonl line 2"
