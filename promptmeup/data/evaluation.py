"""Every image and every matched caption of a split once, for retrieval; no augmentation.

The rows are cut into `size` contiguous parts, which differ by at most one row; each batch carries the
positions of its rows in the whole list, so that gathered results can be put in place.
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


@dataclass(frozen=True)
class ImageBatch:
    """Images to encode."""

    positions_B: Tensor
    """int64, rows of the split's index"""
    images_BCSS: Tensor
    """float32, normalised"""
    image_ids_B: Tensor
    """int64"""


@dataclass(frozen=True)
class CaptionBatch:
    """Captions to encode, each with the image it belongs to."""

    positions_B: Tensor
    """int64, from 0 to the number of matched captions"""
    tokens_BL: Tensor
    token_mask_BL: Tensor
    image_ids_B: Tensor
    """int64, the matching image"""
    image_positions_B: Tensor
    """int64, its row in the split's index: the right answer of a text -> image retrieval"""


def rank_part(num_rows: int, *, rank: int, size: int) -> range:
    """Return the positions of `num_rows` rows that belong to `rank` of `size`."""
    return range(num_rows * rank // size, num_rows * (rank + 1) // size)


def _chunks(part: range, batch: int) -> list[range]:
    return [part[start : start + batch] for start in range(0, len(part), batch)]


@dataclass(frozen=True)
class _ImageMaker:
    split: PackedSplit
    config: DataConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, positions: range) -> ImageBatch:
        no_boxes = np.zeros((0, 4), dtype=np.float32)
        squares = []
        for stored in self.split.read(np.array(positions)):
            if isinstance(stored, DamagedSampleError):
                raise stored  # a substitute would change what is measured
            image_CHW = decoded(self.split, stored)
            view = eval_view(image_CHW.shape[1], image_CHW.shape[2], self.config.image)
            squares.append(apply_view(image_CHW, no_boxes, view, size=self.config.image.size)[0])
        positions_B = torch.tensor(positions, dtype=torch.int64)
        ids = self.split.index["image_id"][positions.start : positions.stop]
        return ImageBatch(
            positions_B=positions_B,
            images_BCSS=normalise(torch.stack(squares), mean=self.mean, std=self.std),
            image_ids_B=torch.from_numpy(np.array(ids, dtype=np.int64)),
        )


@dataclass(frozen=True)
class _CaptionMaker:
    split: PackedSplit
    rows: NDArray[np.int64]
    config: DataConfig
    tokenizer: TextTokenizer

    def __call__(self, positions: range) -> CaptionBatch:
        pairs = self.split.pairs[self.rows[positions.start : positions.stop]]
        texts = [self.split.read_json(int(p["sample"]))["captions"][p["caption"]]["text"] for p in pairs]
        tokens_BL, token_mask_BL = self.tokenizer(texts, max_length=self.config.max_tokens)
        return CaptionBatch(
            positions_B=torch.tensor(positions, dtype=torch.int64),
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
        ShardError: a caption cannot be read.
    """
    rows = np.flatnonzero(split.matched())
    chunks = _chunks(rank_part(len(rows), rank=rank, size=size), batch)
    make = _CaptionMaker(split, rows, config, tokenizer)
    return run_workers(make, chunks, workers=config.workers, prefetch=config.prefetch)
