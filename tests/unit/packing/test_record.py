"""Boxes in stored pixels, and the content of KEY.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from promptmeup.packing.images import StoredImage, prepare_image
from promptmeup.packing.record import Draft, draft_json, read_draft, stored_boxes
from promptmeup.records import Box, Caption, Span

IMAGE = StoredImage(b"", 72, 48, 96, 64)


def test_boxes_are_scaled_clipped_and_ordered_by_score_times_area() -> None:
    small_sure = Box(0, 0, 10, 10, "cup", 0.99)
    large_vague = Box(40, 20, 96, 64, "bus", 0.31239)
    outside_in_part = Box(-20, -4, 8.123, 200, "person", 0.5)
    boxes, dropped = stored_boxes(
        [small_sure, large_vague, outside_in_part], IMAGE, scale_x=0.75, scale_y=0.75
    )
    assert dropped == 0
    assert boxes == (
        Box(30.0, 15.0, 72, 48, "bus", 0.3124),
        Box(0.0, 0.0, 6.09, 48, "person", 0.5),
        Box(0.0, 0.0, 7.5, 7.5, "cup", 0.99),
    )


@pytest.mark.parametrize(
    "box",
    [
        Box(10, 10, 10.5, 30, "line", 1.0),
        Box(80, 10, 90, 30, "beside the image", 1.0),
        Box(10, -9, 30, 0.4, "above it", 1.0),
        Box(30, 10, 20, 30, "inside out", 1.0),
    ],
)
def test_a_box_with_less_than_a_pixel_inside_is_dropped_and_counted(box: Box) -> None:
    assert stored_boxes([box, Box(1, 1, 9, 9, "good", 1.0)], IMAGE) == ((Box(1, 1, 9, 9, "good", 1.0),), 1)


numbers = st.floats(-200, 300)


@given(st.lists(st.builds(Box, numbers, numbers, numbers, numbers, st.just("x"), st.floats(0, 1))))
def test_stored_boxes_are_always_inside_and_all_are_accounted_for(boxes: list[Box]) -> None:
    kept, dropped = stored_boxes(boxes, IMAGE, scale_x=0.3, scale_y=0.7)
    assert len(kept) + dropped == len(boxes)
    assert all(0 <= b.x0 < b.x1 <= 72 and 0 <= b.y0 < b.y1 <= 48 for b in kept)
    assert stored_boxes(reversed(boxes), IMAGE, scale_x=0.3, scale_y=0.7) == (kept, dropped)


def test_a_box_of_a_turned_photo_still_frames_its_object(tmp_path: Path) -> None:
    # the camera was turned: the sensor's 120x80 photo is shown as 80x120
    upright = Image.new("RGB", (80, 120), "black")
    upright.paste("white", (20, 60, 60, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = prepare_image(tmp_path / "a.jpg", shorter_side=40, quality=95)
    (box,), _ = stored_boxes([Box(20, 60, 60, 100, "sign", 1.0)], image, scale_x=image.scale_x, scale_y=0.5)
    assert (box.x0, box.y0, box.x1, box.y1) == (10, 30, 30, 50)
    inside = image.open().crop((12, 32, 28, 48)).convert("L").getextrema()
    left = image.open().crop((0, 0, 8, 60)).convert("L").getextrema()
    assert inside[0] > 200
    assert left[1] < 55


def draft() -> Draft:
    return Draft(
        "0123456789abcdef",
        "a.jpg",
        IMAGE,
        (Caption("7", "Müller läuft.", "f" * 16),),
        boxes=(Box(1.5, 2.0, 3.0, 4.0, "person", 0.5),),
        boxes_by="yolo11n 01234567",
        found=[((Span(0, 6, "Müller", "PERSON"),), ())],
        entities_by="en_core_web_sm 3.8.0",
    )


def test_key_json_holds_what_the_contract_says() -> None:
    content = draft_json(draft())
    assert json.loads(content) == {
        "schema": 2,
        "key": "0123456789abcdef",
        "image_path": "a.jpg",
        "width": 72,
        "height": 48,
        "original_width": 96,
        "original_height": 64,
        "captions": [
            {
                "id": "7",
                "text": "Müller läuft.",
                "image_key": "f" * 16,
                "entities": [{"start": 0, "end": 6, "text": "Müller", "label": "PERSON"}],
                "nouns": [],
            }
        ],
        "boxes": [{"x0": 1.5, "y0": 2.0, "x1": 3.0, "y1": 4.0, "label": "person", "score": 0.5}],
        "boxes_by": "yolo11n 01234567",
        "entities_by": "en_core_web_sm 3.8.0",
    }
    assert "Müller".encode() in content
    assert content.startswith(b'{"boxes":'), "keys are sorted, so equal samples are equal bytes"


def test_a_draft_is_read_back_as_it_was_written() -> None:
    assert read_draft(b"", json.loads(draft_json(draft()))) == draft()
    unseen = replace(draft(), boxes=(), boxes_by=None, found=None, entities_by=None)
    again = read_draft(b"", json.loads(draft_json(unseen)))
    assert (again.boxes_by, again.entities_by, again.found) == (None, None, [((), ())])
