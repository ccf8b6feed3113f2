"""What a teacher has to offer; prompts and labels know nothing else of it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Teacher(Protocol):
    """A frozen dual encoder in eval mode: images and texts into one space of D dimensions.

    It is in no optimizer and in no student's checkpoint. Both encoders run without gradient.
    """

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the weights, the tokenizer or the image settings below."""

    @property
    def temperature(self) -> float:
        """The learned one: similarities are divided by it before the softmax."""

    @property
    def image_size(self) -> int:
        """Side S of the square that `encode_images` takes, in pixels."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the three channels, for pixel values in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Of the three channels, for pixel values in [0, 1]."""

    @property
    def device(self) -> torch.device:
        """Where `encode_images` wants its input."""

    def encode_images(self, images_BCSS: Tensor) -> Tensor:
        """Normalised float32 images on `device` -> unit rows [B, D]."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit rows [B, D]."""
