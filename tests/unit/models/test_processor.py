"""transformers' processors against our own preparation of photos."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from promptmeup.data.transforms import ImageConfig, apply_view, decode, eval_view, normalise
from promptmeup.models.processor import save_processor
from promptmeup.models.weights import find
from tests.support.real_data import real_data
from tests.unit.models.support import MINILM

SIZE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Mode = Literal["center", "whole"]


def saved(folder: Path, mode: Mode) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(find(MINILM, key="test"))
    save_processor(folder, tokenizer, size=SIZE, eval_mode=mode, mean=MEAN, std=STD)
    assert "token_type_ids" in tokenizer("left alone")
    return folder


def largest_difference(processor: Any, file: Path, mode: Mode) -> float:
    """Return it in steps of 1/255 of a colour."""
    photo_CHW = decode(file.read_bytes())
    view = eval_view(*photo_CHW.shape[1:], ImageConfig(size=SIZE, eval_mode=mode))
    square_CSS, _ = apply_view(photo_CHW, np.zeros((0, 4), np.float32), view, size=SIZE)
    ours = normalise(square_CSS[None], mean=MEAN, std=STD)
    with Image.open(file) as photo:
        theirs = processor(images=photo, return_tensors="pt")["pixel_values"]
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    return float(((theirs - ours).abs() * torch.tensor(STD)[:, None, None]).max()) * 255


@pytest.mark.parametrize("mode", ["center", "whole"])
@pytest.mark.parametrize("shape", [(101, 333), (334, 101), (97, 96), (40, 31), (500, 375)])
def test_pixels(tmp_path: Path, mode: Mode, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    processor = AutoImageProcessor.from_pretrained(saved(tmp_path / "model", mode))
    assert largest_difference(processor, tmp_path / "photo.png", mode) < 0.01


@pytest.mark.parametrize("mode", ["center", "whole"])
def test_pixels_of_real_photos(tmp_path: Path, mode: Mode) -> None:
    photos = sorted(real_data("twitter_image_sample").rglob("*.jpg"))[:40]
    processor = AutoImageProcessor.from_pretrained(saved(tmp_path, mode))
    differences = [largest_difference(processor, photo, mode) for photo in photos]
    assert len({Image.open(photo).size for photo in photos}) > 10
    assert max(differences) < 2, max(differences)


def test_one_processor_for_both(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(saved(tmp_path, "whole"))
    photo = Image.new("L", (70, 51), 128)  # grey ones have three channels too
    inputs = processor(text=["a bridge", "a"], images=[photo, photo], padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (2, 3, SIZE, SIZE)
    assert set(AutoTokenizer.from_pretrained(tmp_path)("a")) == {"input_ids", "attention_mask"}
