"""A teacher whose answers are known: an image's vector is its mean colour."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptmeup.records import Banks

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ENTITIES = ("the blue sea", "a red bus", "green grass")
RELATIONS = ("hot place", "green place", "cold place")
BANKS = Banks(
    entities_KD=torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    relations_KD=torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
)

Box = tuple[int, int, int, int]


class ColourTeacher:
    """Undoes the normalisation, then averages; notes what it was shown."""

    fingerprint = "colours"
    temperature = 0.1
    image_size = 8
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []
        self.lowest, self.highest = math.inf, -math.inf

    def encode_images(self, images_BCSS: Tensor) -> Tensor:
        self.shapes.append(images_BCSS.shape)
        self.lowest = min(self.lowest, float(images_BCSS.min()))
        self.highest = max(self.highest, float(images_BCSS.max()))
        return torch.nn.functional.normalize((images_BCSS * 0.25 + 0.5).mean(dim=(2, 3)), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 3) / math.sqrt(3)


def photo(
    background: tuple[int, int, int], *objects: tuple[tuple[int, int, int], Box]
) -> tuple[bytes, np.ndarray]:
    """Return a 64 x 48 image with painted rectangles as a lossless file, and the rectangles as boxes."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:] = background
    for colour, (x0, y0, x1, y1) in objects:
        pixels[y0:y1, x0:x1] = colour
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), np.array([box for _, box in objects], np.float32).reshape(-1, 4)
