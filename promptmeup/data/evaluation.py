"""Every image and every matched caption of a split once, for retrieval; no augmentation.

Every rank has equally many rows, since under ZeRO-3 all must make the same number of steps: a contiguous part, filled
up with rows of weight 0. Each batch carries the positions of its rows in the whole list.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptmeup.data.loader import decoded
from promptmeup.data.reader import DamagedSampleError, PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import apply_view, eval_view, normalise
from promptmeup.data.workers import run_workers
from promptmeup.errors import ShardError


@dataclass(frozen=True)
class ImageBatch:
    """Images to encode."""

    positions_B: Tensor
    """int64, rows of the split's index"""
    weights_B: Tensor
    """float32, 1, or 0 for rows that only fill up"""
    images_BCSS: Tensor
    """float32, normalised"""
    image_ids_B: Tensor
    """int64"""


@dataclass(frozen=True)
class CaptionBatch:
    """Captions to encode, each with the image it belongs to."""

    positions_B: Tensor
    """int64, from 0 to the number of matched captions"""
    weights_B: Tensor
    """float32, 1, or 0 for rows that only fill up"""
    tokens_BL: Tensor
    token_mask_BL: Tensor
    image_ids_B: Tensor
    """int64, the matching image"""
    image_positions_B: Tensor
    """int64, its row in the split's index: the right answer of a text -> image retrieval"""


def rank_part(num_rows: int, *, rank: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return positions and weights of the rows of `rank` of `size`.

    Every rank has equally many; over all ranks, each row has weight 1 once.
    """
    each = -(-num_rows // size)
    positions = np.arange(rank * each, (rank + 1) * each)
    return np.minimum(positions, num_rows - 1), (positions < num_rows).astype(np.float32)


Rows = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions and weights."""


def _chunks(part: Rows, batch: int) -> list[Rows]:
    positions, weights = part
    starts = range(0, len(positions), batch)
    return [(positions[start : start + batch], weights[start : start + batch]) for start in starts]


@dataclass(frozen=True)
class _ImageMaker:
    split: PackedSplit
    config: DataConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, rows: Rows) -> ImageBatch:
        positions, weights = rows
        no_boxes = np.zeros((0, 4), dtype=np.float32)
        squares = []
        for stored in self.split.read(positions):
            if isinstance(stored, DamagedSampleError):
                raise stored  # a substitute would change what is measured
            image_CHW = decoded(self.split, stored)
            view = eval_view(image_CHW.shape[1], image_CHW.shape[2], self.config.image)
            squares.append(apply_view(image_CHW, no_boxes, view, size=self.config.image.size)[0])
        ids = self.split.index["image_id"][positions]
        return ImageBatch(
            positions_B=torch.from_numpy(positions),
            weights_B=torch.from_numpy(weights),
            images_BCSS=normalise(torch.stack(squares), mean=self.mean, std=self.std),
            image_ids_B=torch.from_numpy(np.array(ids, dtype=np.int64)),
        )


@dataclass(frozen=True)
class _CaptionMaker:
    split: PackedSplit
    rows: NDArray[np.int64]
    config: DataConfig
    tokenizer: TextTokenizer

    def __call__(self, rows: Rows) -> CaptionBatch:
        positions, weights = rows
        pairs = self.split.pairs[self.rows[positions]]
        texts = [self.split.read_json(int(p["sample"]))["captions"][p["caption"]]["text"] for p in pairs]
        tokens_BL, token_mask_BL = self.tokenizer(texts, max_length=self.config.max_tokens)
        return CaptionBatch(
            positions_B=torch.from_numpy(positions),
            weights_B=torch.from_numpy(weights),
            tokens_BL=tokens_BL,
            token_mask_BL=token_mask_BL,
            image_ids_B=torch.from_numpy(np.array(pairs["image_id"], dtype=np.int64)),
            image_positions_B=torch.from_numpy(np.array(pairs["sample"], dtype=np.int64)),
        )


def image_batches(
    split: PackedSplit,
    *,
    config: DataConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int,
    rank: int,
    size: int,
) -> Iterator[ImageBatch]:
    """Yield this rank's part of the images, `batch` at a time, the last one smaller.

    Raises:
        ShardError: an image cannot be read.
    """
    chunks = _chunks(rank_part(len(split), rank=rank, size=size), batch)
    make = _ImageMaker(split, config, mean, std)
    return run_workers(make, chunks, workers=config.workers, prefetch=config.prefetch)


def caption_batches(
    split: PackedSplit,
    *,
    config: DataConfig,
    tokenizer: TextTokenizer,
    batch: int,
    rank: int,
    size: int,
) -> Iterator[CaptionBatch]:
    """Yield this rank's part of the matched captions, `batch` at a time, the last one smaller.

    Raises:
        ShardError: there is none, or one cannot be read.
    """
    rows = np.flatnonzero(split.matched())
    if not len(rows):
        raise ShardError(
            f"{split.folder} has no caption that matches its image, so retrieval cannot be measured on it; "
            "choose another split, or leave data.val out"
        )
    chunks = _chunks(rank_part(len(rows), rank=rank, size=size), batch)
    make = _CaptionMaker(split, rows, config, tokenizer)
    return run_workers(make, chunks, workers=config.workers, prefetch=config.prefetch)
