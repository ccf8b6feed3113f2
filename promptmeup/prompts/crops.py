"""Cut the teacher's inputs out of a stored photo: object crops and the whole image, both un-augmented."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from promptmeup.errors import ShardError


def decode(content: bytes) -> Tensor:
    """Decode an encoded image to uint8 [3, height, width].

    Raises:
        ShardError: these bytes are no image.
    """
    try:
        # a bytearray, because torch warns about memory that it must not write to
        image_CHW: Tensor = decode_image(
            torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ShardError(f"an image cannot be decoded ({reason}); check with shards/verify.py") from error
    return image_CHW


def resize_square(image_CHW: Tensor, *, size: int) -> Tensor:
    """Resize to float32 [3, S, S] in 0..255, bicubic with antialiasing: nothing is cut, the shape changes."""
    resized = F.interpolate(
        image_CHW[None].float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 255)  # bicubic overshoots at edges


def pixel_window(
    box: NDArray[np.floating], *, width: int, height: int, padding: float = 0.0
) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 in whole pixels: the box grown by `padding` of its sides, inside the image.

    Never empty: a box thinner than a pixel, or outside the image, becomes the nearest pixel.
    """

    def span(low: float, high: float, length: int) -> tuple[int, int]:
        margin = padding * (high - low)
        start = min(max(math.floor(low - margin), 0), length - 1)
        return start, min(max(math.ceil(high + margin), start + 1), length)

    x0, x1 = span(float(box[0]), float(box[2]), width)
    y0, y1 = span(float(box[1]), float(box[3]), height)
    return x0, y0, x1, y1


def cut_crops(
    image_CHW: Tensor, boxes_M4: NDArray[np.floating], *, size: int, padding: float = 0.0
) -> Tensor:
    """Cut every box (x0, y0, x1, y1 in pixels) out of a uint8 image: float32 [M, 3, S, S] in 0..255.

    Row m is box m. `padding` is the share of the box's width and height added on each side.
    """
    _, height, width = image_CHW.shape
    crops = []
    for box in boxes_M4.reshape(-1, 4):
        x0, y0, x1, y1 = pixel_window(box, width=width, height=height, padding=padding)
        crops.append(resize_square(image_CHW[:, y0:y1, x0:x1], size=size))
    return torch.stack(crops) if crops else image_CHW.new_zeros((0, 3, size, size), dtype=torch.float32)
