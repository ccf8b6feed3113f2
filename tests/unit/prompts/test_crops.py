"""Crops come from the stored pixels under the box, at the teacher's size."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from promptmeup.errors import ShardError
from promptmeup.prompts.crops import cut_crops, decode, pixel_window, resize_square

RED, BLUE = (255, 0, 0), (0, 0, 255)


def painted(height: int = 40, width: int = 60) -> torch.Tensor:
    """Blue, with a red rectangle at x 10..30, y 5..25."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = BLUE
    pixels[5:25, 10:30] = RED
    return torch.from_numpy(pixels).permute(2, 0, 1)


def colour(image_CSS: torch.Tensor) -> list[float]:
    return image_CSS.mean(dim=(1, 2)).round().tolist()


def test_a_crop_shows_its_rectangle_and_nothing_else():
    crops = cut_crops(painted(), np.array([[10, 5, 30, 25], [30, 25, 60, 40]], np.float32), size=16)
    assert crops.shape == (2, 3, 16, 16)
    assert crops.dtype == torch.float32
    # x and y are not confused: either mistake would show both colours
    assert (crops[0] - torch.tensor(RED).view(3, 1, 1)).abs().max() < 0.01
    assert (crops[1] - torch.tensor(BLUE).view(3, 1, 1)).abs().max() < 0.01


def test_crops_keep_the_boxes_order():
    boxes = np.array([[10, 5, 30, 25], [31, 0, 60, 40], [12, 7, 20, 20]], np.float32)
    assert [colour(crop) for crop in cut_crops(painted(), boxes, size=4)] == [
        [255, 0, 0],
        [0, 0, 255],
        [255, 0, 0],
    ]


def test_padding_shows_the_surroundings():
    box = np.array([[10, 5, 30, 25]], np.float32)
    padded = cut_crops(painted(), box, size=30, padding=0.25)[0]
    assert pixel_window(box[0], width=60, height=40, padding=0.25) == (5, 0, 35, 30)
    assert padded[2, :, 0].min() > 254  # the left column is blue
    assert padded[0, 15, 15] > 254


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((10.2, 5.7, 30.1, 24.2), (10, 5, 31, 25)),  # every pixel that the box touches
        ((7.0, 7.0, 7.0, 7.0), (7, 7, 8, 8)),
        ((7.4, 7.4, 7.6, 7.6), (7, 7, 8, 8)),
        ((-5.0, -5.0, 100.0, 100.0), (0, 0, 60, 40)),
        ((60.0, 40.0, 60.0, 40.0), (59, 39, 60, 40)),
        ((70.0, 50.0, 80.0, 60.0), (59, 39, 60, 40)),
        ((-9.0, -9.0, -5.0, -5.0), (0, 0, 1, 1)),
    ],
)
def test_windows_are_whole_pixels_inside_the_image_and_never_empty(box, window):
    assert pixel_window(np.array(box), width=60, height=40) == window


def test_no_boxes_give_no_crops():
    assert cut_crops(painted(), np.zeros((0, 4), np.float32), size=8).shape == (0, 3, 8, 8)


def test_resizing_matches_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 34, 3), dtype=np.uint8)
    ours = resize_square(torch.from_numpy(pixels).permute(2, 0, 1), size=16)
    theirs = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    # the same filter (a = -0.5, antialiased); Pillow rounds to whole numbers after each direction
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() <= 1.5
    assert ours.min() >= 0
    assert ours.max() <= 255


def test_decode_gives_three_channels_and_refuses_other_bytes():
    buffer = io.BytesIO()
    Image.new("L", (6, 4), 77).save(buffer, "PNG")
    image = decode(buffer.getvalue())
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [77]
    for content in (b"no image", b""):
        with pytest.raises(ShardError, match="cannot be decoded"):
            decode(content)
