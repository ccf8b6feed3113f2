"""From JPEG bytes to a square image, and its boxes with it.

A `View` is the part of an image that is looked at, mirrored or not; `apply_view` takes image and boxes
through the same view, so that they cannot come apart. Chance enters only in `draw_view` and `draw_color`,
through a generator that the caller seeds for each pair: workers and ranks have no influence on it.
"""

import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, field_validator
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode

from promptmeup.config import Config
from promptmeup.records import Batch


class ImageConfig(Config):
    """How an image becomes the encoder's square input."""

    size: int = Field(default=224, ge=16, le=1024)
    """S, the side in pixels"""
    min_crop_area: float = Field(default=0.5, gt=0, le=1)
    """smallest share of the image that a training crop keeps"""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    """range of a crop's width / height"""
    flip: float = Field(default=0.5, ge=0, le=1)
    """chance of mirroring; 0 where captions speak of left and right"""
    color_jitter: float = Field(default=0.1, ge=0, le=0.9)
    """brightness, contrast and saturation change by up to this share; 0 switches it off"""
    eval_mode: Literal["center", "whole"] = "center"
    """look at the largest square in the middle, or squeeze the whole image into the square"""

    @field_validator("aspect")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("write the smallest width / height first, both above 0, like [0.75, 1.3333]")
        return value


@dataclass(frozen=True)
class View:
    """A rectangle of an image in whole pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def decode(data: bytes | memoryview, *, upright: bool = False) -> Tensor:
    """Decode an image file to uint8 RGB [3, height, width]; of an animation, its first picture.

    Args:
        upright: turn it as its EXIF orientation says; photos in shards have been turned already.

    Raises:
        ValueError: neither torchvision nor Pillow, which knows more formats, can read `data`.
    """
    try:
        # a copy, because torch has no read-only tensors
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels_CHW: Tensor = decode_image(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=upright)
        if pixels_CHW.ndim == 4:  # the pictures of a GIF
            pixels_CHW = pixels_CHW[0]
        if pixels_CHW.dtype == torch.uint16:  # PNG
            pixels_CHW = (pixels_CHW.to(torch.int32) >> 8).to(torch.uint8)
        return pixels_CHW
    except (RuntimeError, ValueError) as first:
        try:
            with Image.open(io.BytesIO(data)) as image:
                turned = ImageOps.exif_transpose(image) if upright else image
                pixels = np.array(turned.convert("RGB"))
        except (OSError, SyntaxError, UnidentifiedImageError) as error:
            raise ValueError(f"not a readable image: {first}") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"not a readable image: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def draw_view(height: int, width: int, config: ImageConfig, random: np.random.Generator) -> View:
    """Draw a crop that keeps at least `min_crop_area` of the image, and whether to mirror it.

    Area share uniform, aspect log-uniform, as in Inception's training (Szegedy et al. 2015) and torchvision's
    RandomResizedCrop. After ten draws that do not fit into the image, as in a panorama, it is the
    largest crop in the middle with an allowed aspect.
    """
    flip = bool(random.random() < config.flip)
    low, high = config.aspect
    for _ in range(10):
        area = height * width * random.uniform(config.min_crop_area, 1.0)
        aspect = math.exp(random.uniform(math.log(low), math.log(high)))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(0, height - crop_height, endpoint=True))
            left = int(random.integers(0, width - crop_width, endpoint=True))
            return View(top, left, crop_height, crop_width, flip)
    crop_width = max(1, min(width, round(height * high)))
    crop_height = max(1, min(height, round(width / low)))
    return View((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, flip)


def eval_view(height: int, width: int, config: ImageConfig) -> View:
    """Return the view for evaluation: the same every time."""
    if config.eval_mode == "whole":
        return View(0, 0, height, width)
    side = min(height, width)
    return View((height - side) // 2, (width - side) // 2, side, side)


def apply_view(
    image_CHW: Tensor, boxes_M4: NDArray[np.float32], view: View, *, size: int
) -> tuple[Tensor, NDArray[np.float32]]:
    """Return the view as a uint8 square [3, size, size] and the boxes as fractions [0, 1] of it.

    `boxes_M4` is x0, y0, x1, y1 in pixels of `image_CHW`. Boxes are clipped to the view; one that lies
    outside keeps its place with no area (see `has_area`).
    """
    square_CSS = TF.resized_crop(
        image_CHW,
        view.top,
        view.left,
        view.height,
        view.width,
        [size, size],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    origin = np.array([view.left, view.top] * 2, dtype=np.float32)
    extent = np.array([view.width, view.height] * 2, dtype=np.float32)
    fractions_M4 = np.clip((boxes_M4.reshape(-1, 4) - origin) / extent, 0, 1)
    if view.flip:
        square_CSS = TF.horizontal_flip(square_CSS)
        fractions_M4[:, [0, 2]] = 1 - fractions_M4[:, [2, 0]]
    return square_CSS, fractions_M4.astype(np.float32)


def has_area(boxes_M4: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return [M], true where a box still covers something."""
    result: NDArray[np.bool_] = (boxes_M4[:, 2] > boxes_M4[:, 0]) & (boxes_M4[:, 3] > boxes_M4[:, 1])
    return result


GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision


def draw_color(amount: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return factors [3] of brightness, contrast and saturation, drawn from [1 - amount, 1 + amount]."""
    return random.uniform(1 - amount, 1 + amount, size=3).astype(np.float32)


def change_color_(images_BCSS: Tensor, factors_B3: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of float images in place; clipped to [0, 255] at the end.

    As torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation` one after the other, but for
    all images at once and without rounding and clipping in between: with b, c, s the factors, g(x) the gray
    of a pixel and m the mean gray of the image,

        cb (s x + (1 - s) g(x)) + (1 - c) b m
    """
    brightness, contrast, saturation = (factors_B3[:, i, None, None, None] for i in range(3))
    red, green, blue = (images_BCSS[:, channel, None] for channel in range(3))
    gray_B1SS = (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])
    mean_B111 = gray_B1SS.mean((2, 3), keepdim=True)
    scale = contrast * brightness
    gray_B1SS.mul_(scale * (1 - saturation)).add_((1 - contrast) * brightness * mean_B111)
    return images_BCSS.mul_(scale * saturation).add_(gray_B1SS).clamp_(0, 255)


def color_images(batch: Batch) -> Batch:
    """Return the batch with its photos coloured by `color_B3`, rounded to uint8, on their device."""
    if batch.color_B3 is None:
        return batch
    images_BCSS = batch.images_BCSS
    done_BCSS = torch.empty_like(images_BCSS)
    # on a CPU one photo after the other, which stays in its cache
    step = 1 if images_BCSS.device.type == "cpu" else len(images_BCSS)
    for rows in (slice(start, start + step) for start in range(0, len(images_BCSS), step)):
        done_BCSS[rows] = change_color_(images_BCSS[rows].float(), batch.color_B3[rows]).round_()
    return replace(batch, images_BCSS=done_BCSS, color_B3=None)


def normalise(images_BCSS: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return uint8 images as float32, shifted and scaled by channel; `mean` and `std` are for [0, 1]."""
    device = images_BCSS.device
    return images_BCSS.float().sub_(_per_channel(mean, device)).div_(_per_channel(std, device))


@lru_cache(maxsize=8)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return [C, 1, 1] for [0, 255]; kept, or every step would copy them to the device."""
    return torch.tensor(values, device=device).view(-1, 1, 1) * 255
