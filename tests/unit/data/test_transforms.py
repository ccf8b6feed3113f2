"""Image and boxes go through the same augmentation: checked on the pixels of painted rectangles."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from promptmeup.data.transforms import (
    ImageConfig,
    View,
    apply_view,
    change_color_,
    color_images,
    decode,
    draw_color,
    draw_view,
    eval_view,
    has_area,
    normalise,
)
from promptmeup.records import Batch


def painted(height, width, box):
    """A black image with one white rectangle."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    image[:, y0:y1, x0:x1] = 255
    return image, np.array([box], dtype=np.float32)


def extent(image_CSS):
    """x0, y0, x1, y1 of the bright pixels, in pixels, or None."""
    bright = image_CSS[0] > 127
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_box_covers_the_same_pixels_after_augmentation(data):
    height, width = data.draw(st.integers(40, 300)), data.draw(st.integers(40, 300))
    x0, y0 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    box = (x0, y0, data.draw(st.integers(x0 + 12, width)), data.draw(st.integers(y0 + 12, height)))
    image, boxes = painted(height, width, box)
    config = ImageConfig(size=128, min_crop_area=data.draw(st.sampled_from([0.1, 0.5, 1.0])))
    view = draw_view(height, width, config, np.random.default_rng(data.draw(st.integers(0, 10**6))))
    square, fractions = apply_view(image, boxes, view, size=128)
    assert square.shape == (3, 128, 128)
    pixels = extent(square)
    sides = (fractions[0, 2:] - fractions[0, :2]) * 128
    if pixels is None or sides.min() < 2:
        assert sides.min() < 2  # cut off by the crop, in the picture and in the box alike
    else:
        assert np.abs(fractions[0] * 128 - pixels).max() <= 1.5


@pytest.mark.parametrize("mode", ["center", "whole"])
@pytest.mark.parametrize(("height", "width"), [(60, 160), (160, 60), (100, 100)])
def test_box_covers_the_same_pixels_in_evaluation(mode, height, width):
    image, boxes = painted(height, width, (width // 3, height // 3, width * 2 // 3, height * 2 // 3))
    view = eval_view(height, width, ImageConfig(size=96, eval_mode=mode))
    square, fractions = apply_view(image, boxes, view, size=96)
    assert np.abs(fractions[0] * 96 - extent(square)).max() <= 1.5
    assert (view.height, view.width) == ((height, width) if mode == "whole" else (min(height, width),) * 2)


def test_mirrored_box():
    image, boxes = painted(64, 64, (0, 0, 16, 32))
    square, fractions = apply_view(image, boxes, View(0, 0, 64, 64, flip=True), size=64)
    assert fractions.tolist() == [[0.75, 0.0, 1.0, 0.5]]
    assert extent(square).tolist() == [48, 0, 64, 32]


def test_box_outside_the_view_keeps_its_place_without_area():
    image, _ = painted(64, 64, (0, 0, 4, 4))
    boxes = np.array([[0, 0, 20, 64], [30, 30, 60, 60], [0, 0, 64, 20]], dtype=np.float32)
    _, fractions = apply_view(image, boxes, View(32, 32, 32, 32, flip=True), size=32)
    assert has_area(fractions).tolist() == [False, True, False]
    assert fractions.min() >= 0
    assert fractions.max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 800), st.integers(1, 800), st.floats(0.05, 1), st.floats(0.3, 1), st.integers(0, 10**6))
def test_view_lies_in_the_image_and_keeps_its_area(height, width, min_area, narrow, seed):
    config = ImageConfig(min_crop_area=min_area, aspect=(narrow, 1 / narrow))
    view = draw_view(height, width, config, np.random.default_rng(seed))
    assert view.top >= 0
    assert view.left >= 0
    assert 1 <= view.height <= height - view.top
    assert 1 <= view.width <= width - view.left
    if narrow < width / height < 1 / narrow:
        rounding = (view.height + 1) * (view.width + 1)
        assert rounding >= min_area * height * width


def test_crops_and_mirroring_vary_as_configured():
    config = ImageConfig(min_crop_area=0.25, flip=0.25)
    views = [draw_view(200, 200, config, np.random.default_rng(seed)) for seed in range(800)]
    shares = np.array([v.height * v.width / 40_000 for v in views])
    aspects = np.array([v.width / v.height for v in views])
    assert shares.min() < 0.3
    assert shares.max() > 0.95
    assert aspects.min() < 0.8
    assert aspects.max() > 1.25
    assert abs(np.log(aspects).mean()) < 0.03
    assert 0.2 < np.mean([v.flip for v in views]) < 0.3
    assert not any(draw_view(9, 9, ImageConfig(flip=0), np.random.default_rng(s)).flip for s in range(50))


def test_panorama_gets_the_largest_allowed_crop():
    view = draw_view(50, 1000, ImageConfig(aspect=(0.75, 1.25)), np.random.default_rng(0))
    assert (view.height, view.width) == (50, 62)


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.25])
def test_colours_change_as_torchvision_changes_them_one_after_the_other(amount):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(90, 150, (4, 3, 16, 16), dtype=np.uint8))
    factors = torch.from_numpy(np.stack([draw_color(amount, rng) for _ in range(4)]))
    assert ((factors - 1).abs() <= amount).all()
    expected = []
    for image, (brightness, contrast, saturation) in zip(
        images.double() / 255, factors.tolist(), strict=True
    ):
        changed = TF.adjust_brightness(image, brightness)
        changed = TF.adjust_contrast(changed, contrast)
        expected.append(TF.adjust_saturation(changed, saturation) * 255)
    found = change_color_(images.float(), factors)
    # away from black and white, where torchvision clips after each step
    assert (found - torch.stack(expected)).abs().max() < 1e-3
    assert found.min() >= 0 and found.max() <= 255


def test_a_batch_is_coloured_photo_by_photo():
    images = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    zeros = torch.zeros(3, dtype=torch.int64)
    batch = Batch(images, zeros, zeros == 0, zeros, zeros, zeros, zeros == 0, ("a", "b", "c"))
    assert color_images(batch) is batch
    factors = torch.tensor([[1.2, 1.0, 1.0], [1.0, 0.5, 0.5], [9.0, 1.0, 1.0]])
    done = color_images(replace(batch, color_B3=factors))
    assert done.color_B3 is None
    assert done.images_BCSS.dtype == torch.uint8
    assert done.images_BCSS.flatten(1).unique(dim=1).flatten().tolist() == [120, 100, 255]


def test_normalise():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalise(images, mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 0.1))
    assert torch.allclose(result.flatten(), torch.tensor([-1.0, 2.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("TIFF", "RGB")])
def test_decode_reads_any_kind_as_rgb(kind, mode):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (90, 90, 90)).convert(mode).save(buffer, kind)
    image = decode(buffer.getvalue())
    assert image.shape == (3, 10, 20)
    assert image.dtype == torch.uint8
    assert (image.float() - 90).abs().max() <= 6


def test_decode_takes_the_first_picture_of_an_animation():
    colours = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        file = io.BytesIO()
        colours[0].save(file, kind, save_all=True, append_images=colours[1:])
        pixels = decode(file.getvalue())
        assert pixels.shape == (3, 20, 30), kind
        assert pixels[0].float().mean() > 250 and pixels[2].float().mean() < 5, kind


def test_decode_makes_8_bits_of_16():
    file = io.BytesIO()
    Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)).save(file, "PNG")
    pixels = decode(file.getvalue())
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[1].flatten().int(), torch.arange(0, 65536, 64) // 256)


def test_decode_refuses_what_would_fill_the_memory():
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = (20_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match=r"not a readable image: .* could be decompression bomb"):
        decode(bytes(data))


def test_decode_refuses_what_is_cut_short():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(buffer, "JPEG")
    for data in (buffer.getvalue()[:900], b"", b"no image"):
        with pytest.raises(ValueError, match="not a readable image"):
            decode(data)


@pytest.mark.parametrize("values", [{"aspect": (2.0, 1.0)}, {"aspect": (0.0, 1.0)}, {"size": 0}, {"flip": 2}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        ImageConfig(**values)


def test_default_aspect_is_symmetric():
    low, high = ImageConfig().aspect
    assert math.isclose(low * high, 1)
