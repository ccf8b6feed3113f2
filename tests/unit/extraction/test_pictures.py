"""Photos and objects as pixels: absent, damaged, turned, cut out."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from promptmeup.extraction.pictures import Pictures, stacked
from promptmeup.records import Box, Post

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Left half red, right half blue, 80 x 40."""
    image = Image.new("RGB", (80, 40), RED)
    image.paste(BLUE, (40, 0, 80, 40))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def post(image: Path | None, *, crops: tuple[Path, ...] = (), boxes: tuple[Box, ...] | None = None) -> Post:
    return Post(id="1", words=("a",), image=image, crops=crops, boxes=boxes)


def test_whole_and_center(photo: Path) -> None:
    whole, _ = Pictures(size=16, eval_mode="whole", max_crops=0).read(post(photo))
    assert whole is not None
    assert whole.shape == (3, 16, 16)
    assert whole[0, :, :6].float().mean() > 250 and whole[2, :, 10:].float().mean() > 250
    center, _ = Pictures(size=16, eval_mode="center", max_crops=0).read(post(photo))
    assert center is not None
    # the middle 40 of 80 columns: half of them red
    assert center[0, :, :7].float().mean() > 250


def test_absent_and_damaged_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    pictures = Pictures(size=16, eval_mode="whole", max_crops=2)
    for path in (None, tmp_path / "gone.jpg", tmp_path / "bad.jpg"):
        assert pictures.read(post(path)) == (None, [])


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), RED)
    image.paste(BLUE, (40, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: red is above
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    square, _ = Pictures(size=16, eval_mode="whole", max_crops=0).read(post(tmp_path / "turned.jpg"))
    assert square is not None
    assert square[0, :6].float().mean() > 240
    assert square[2, 10:].float().mean() > 240


def test_the_corpus_own_crops_come_before_boxes(photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "lime").save(tmp_path / "crop.png")
    box = Box(50, 5, 70, 35, "person", 0.9)
    pictures = Pictures(size=16, eval_mode="whole", max_crops=2)
    _, crops = pictures.read(post(photo, crops=(tmp_path / "crop.png",), boxes=(box,)))
    assert len(crops) == 1
    assert crops[0][1].float().mean() > 250


def test_boxes_by_score_times_area_and_within_the_photo(photo: Path) -> None:
    boxes = (
        Box(0, 0, 10, 10, "small", 1.0),
        Box(50, 5, 95, 35, "blue, beyond the edge", 0.9),
        Box(0, 0, 39, 40, "red, unsure", 0.2),
        Box(-5, -5, 30, 30, "red", 0.9),
    )
    pictures = Pictures(size=16, eval_mode="whole", max_crops=2)
    _, crops = pictures.read(post(photo, boxes=boxes))
    assert len(crops) == 2
    assert crops[0][2].float().mean() > 250, "the largest first"
    assert crops[1][0].float().mean() > 250
    _, none = Pictures(size=16, eval_mode="whole", max_crops=0).read(post(photo, boxes=boxes))
    assert none == []
    _, dot = pictures.read(post(photo, boxes=(Box(79.9, 39.9, 80, 40, "a point", 1.0),)))
    assert dot[0].shape == (3, 16, 16)


def test_side_by_side(photo: Path) -> None:
    pictures = Pictures(size=16, eval_mode="whole", max_crops=2)
    read = [
        pictures.read(post(photo, boxes=(Box(0, 0, 20, 20, "x", 1.0),))),
        pictures.read(post(None)),
    ]
    found = stacked(read, size=16, max_crops=2)
    assert found["image_mask"].tolist() == [True, False]
    assert found["crop_mask"].tolist() == [[True, False], [False, False]]
    assert found["pixel_values"].dtype == torch.uint8
    assert not found["pixel_values"][1].any()
    assert found["crop_values"].shape == (2, 2, 3, 16, 16)
    assert set(stacked(read, size=16, max_crops=0)) == {"pixel_values", "image_mask"}
