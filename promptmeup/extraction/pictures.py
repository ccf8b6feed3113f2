"""The photo of a sentence, and the pictures of single objects in it, as squares of pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from promptmeup.data.transforms import ImageConfig, View, apply_view, decode, eval_view
from promptmeup.records import Box, Post


@dataclass(frozen=True)
class Pictures:
    """How photos are looked at: the same way each time."""

    size: int
    eval_mode: Literal["center", "whole"]
    max_crops: int

    def read(self, post: Post) -> tuple[Tensor | None, list[Tensor]]:
        """Return the photo, uint8 [C, S, S], and at most `max_crops` such squares of its objects.

        None where the sentence has no photo or its file cannot be read; then it has no objects either.
        """
        photo_CHW = _decoded(post.image)
        if photo_CHW is None:
            return None, []
        square_CSS = self._square(photo_CHW)
        if post.crops:
            found = [_decoded(path) for path in post.crops[: self.max_crops]]
            return square_CSS, [self._square(crop_CHW) for crop_CHW in found if crop_CHW is not None]
        largest = sorted(post.boxes or (), key=_weight, reverse=True)[: self.max_crops]
        return square_CSS, [self._cut(photo_CHW, box) for box in largest]

    def _square(self, image_CHW: Tensor) -> Tensor:
        config = ImageConfig(size=self.size, eval_mode=self.eval_mode)
        height, width = image_CHW.shape[1:]
        return self._view(image_CHW, eval_view(height, width, config))

    def _cut(self, image_CHW: Tensor, box: Box) -> Tensor:
        height, width = image_CHW.shape[1:]
        left, top = (
            int(min(max(value, 0), limit - 1)) for value, limit in ((box.x0, width), (box.y0, height))
        )
        right = int(min(max(np.ceil(box.x1), left + 1), width))
        bottom = int(min(max(np.ceil(box.y1), top + 1), height))
        return self._view(image_CHW, View(top, left, bottom - top, right - left))

    def _view(self, image_CHW: Tensor, view: View) -> Tensor:
        return apply_view(image_CHW, np.zeros((0, 4), dtype=np.float32), view, size=self.size)[0]


def _weight(box: Box) -> float:
    return box.score * (box.x1 - box.x0) * (box.y1 - box.y0)


def _decoded(path: Path | None) -> Tensor | None:
    if path is None:
        return None
    try:
        return decode(path.read_bytes(), upright=True)
    except (OSError, ValueError):
        return None


def image_error(path: Path) -> str:
    """Return why a photo was not seen."""
    return read_error(path) or f"{path} could not be read, and can be now"


def read_error(path: Path) -> str | None:
    """Return why a picture cannot be read; None where it can."""
    try:
        decode(path.read_bytes(), upright=True)
    except FileNotFoundError:
        return f"there is no file {path}"
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    except ValueError:
        return f"{path} is no image, or a damaged one"
    return None


def stacked(
    pictures: list[tuple[Tensor | None, list[Tensor]]], *, size: int, max_crops: int
) -> dict[str, Tensor]:
    """Return the pictures of some rows as a model's arguments, uint8: pixel_values, crop_values and their masks."""
    blank_CSS = torch.zeros(3, size, size, dtype=torch.uint8)
    found = {
        "pixel_values": torch.stack([blank_CSS if photo is None else photo for photo, _ in pictures]),
        "image_mask": torch.tensor([photo is not None for photo, _ in pictures]),
    }
    if max_crops:
        found["crop_values"] = blank_CSS.repeat(len(pictures), max_crops, 1, 1, 1)
        found["crop_mask"] = torch.zeros(len(pictures), max_crops, dtype=torch.bool)
        for row, (_, crops) in enumerate(pictures):
            for place, crop_CSS in enumerate(crops):
                found["crop_values"][row, place] = crop_CSS
                found["crop_mask"][row, place] = True
    return found
