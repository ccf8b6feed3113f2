"""Training batches of one rank, made by worker processes.

The main process walks along the order and hands out slices of pair rows; a worker reads, decodes,
augments and collates one slice. What a batch holds depends on its position in the order alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from promptmeup.config import Config
from promptmeup.data.collate import Example, collate
from promptmeup.data.order import Order, generator
from promptmeup.data.reader import LabelReader, PackedSplit, PairFilter
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import ImageConfig, apply_view, decode, draw_view, jitter
from promptmeup.data.workers import run_workers
from promptmeup.errors import ConfigError, ShardError
from promptmeup.records import Batch


class DataConfig(Config):
    """What is read, and how."""

    train: Path
    """packed split to train on"""
    val: Path | None = None
    """packed split for retrieval during training; none is run without it"""
    pairs: PairFilter = "all"
    """train on every pair, or on those whose caption belongs to the image"""
    labels: str | None = None
    """folder of soft labels under train/labels, named by the fingerprint of its prompt bank"""
    min_confidence: float = Field(default=0.2, ge=0, le=1)
    """soft labels whose largest probability is below this do not count"""
    max_objects: int = Field(default=3, ge=1, le=64)
    """M, objects per image; those with the largest score x area come first"""
    max_tokens: int = Field(default=40, ge=8, le=512)
    """longer captions are cut"""
    image: ImageConfig = ImageConfig()
    window: int = Field(default=8, ge=1)
    """shards permuted together: larger mixes better, smaller reads more locally"""
    workers: int = Field(default=1, ge=0, le=128)
    """processes that read and decode for each rank; 0 does it in the training process"""
    prefetch: int = Field(default=2, ge=1, le=64)
    """batches each worker keeps ready"""


def training_order(split: PackedSplit, *, seed: int, window: int, pairs: PairFilter) -> Order:
    """Return the order in which the pairs of `split` are trained on.

    Raises:
        ShardError: the split has no such pair.
    """
    keep_N = split.matched() if pairs == "matched" else None
    if not (split.manifest.pairs if keep_N is None else keep_N.any()):
        raise ShardError(
            f"{split.folder} has {split.manifest.pairs} pairs, {split.manifest.matched_pairs} of them "
            f"matched; data.pairs={pairs} leaves none: choose another split or filter"
        )
    return Order(
        split.shard_pairs,
        split.pairs["image_id"],
        corpus=split.manifest.fingerprint,
        seed=seed,
        window=window,
        pairs=pairs,
        keep_N=keep_N,
    )


@dataclass(frozen=True)
class _PairMaker:
    """Makes the batch of a slice of the order."""

    split: PackedSplit
    labels: LabelReader | None
    config: DataConfig
    tokenizer: TextTokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int

    def example(self, position: int, row: int) -> Example:
        """Read pair `row`; the chance in its augmentation depends on its `position` in the order."""
        pair = self.split.pairs[row]
        sample = int(pair["sample"])
        record = self.split.read_json(sample)
        image_CHW = read_pixels(self.split, sample)
        boxes_M4 = np.array(
            [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in record["boxes"]], dtype=np.float32
        ).reshape(-1, 4)
        config = self.config.image
        random = np.random.Generator(generator("augment", self.seed, position))
        view = draw_view(image_CHW.shape[1], image_CHW.shape[2], config, random)
        image_CSS, fractions_M4 = apply_view(image_CHW, boxes_M4, view, size=config.size)
        return Example(
            key=record["key"],
            image_id=int(pair["image_id"]),
            caption_id=int(pair["caption_id"]),
            text=record["captions"][int(pair["caption"])]["text"],
            image_CSS=jitter(image_CSS, config.color_jitter, random),
            boxes_M4=fractions_M4,
            object_labels=self.labels.objects(sample) if self.labels else None,
            image_label=self.labels.image(sample) if self.labels else None,
        )

    def __call__(self, item: tuple[int, NDArray[np.int64]]) -> Batch:
        start, rows = item
        return collate(
            [self.example(start + i, int(row)) for i, row in enumerate(rows)],
            tokenizer=self.tokenizer,
            max_tokens=self.config.max_tokens,
            max_objects=self.config.max_objects,
            mean=self.mean,
            std=self.std,
            min_confidence=self.config.min_confidence,
        )


def read_pixels(split: PackedSplit, sample: int) -> torch.Tensor:
    """Return the stored image of a sample as uint8 RGB [3, height, width].

    Raises:
        ShardError: it cannot be read or decoded.
    """
    try:
        return decode(split.read_image(sample))
    except ValueError as error:
        raise ShardError(
            f"{split.where(sample)}: {error}; run shards/verify.py, then restore the shard"
        ) from error


def rank_slices(
    order: Order, *, start_pairs: int, global_batch: int, rank: int, size: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield position and rows of this rank's part of every global batch from `start_pairs` on, for ever."""
    local = global_batch // size
    start = start_pairs + rank * local
    while True:
        yield start, order.rows(start, start + local)
        start += global_batch


def train_batches(
    split: PackedSplit,
    order: Order,
    *,
    config: DataConfig,
    tokenizer: TextTokenizer,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    start_pairs: int,
    global_batch: int,
    rank: int,
    size: int,
    labels: LabelReader | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Return the endless batches of rank `rank` of `size`, from pair `start_pairs` of the order on.

    Together the ranks see the same global batches whatever `size` and `config.workers` are; only the
    padded length of tokens may differ. Batches read ahead do not count: the caller adds `global_batch`
    to its position for every batch it has used.

    Args:
        mean, std: of the vision encoder, by channel, for pixels in [0, 1].
        seed: of the augmentation.
        start_pairs: pairs consumed so far by all ranks together (`RunState.pairs`).

    Raises:
        ConfigError: `global_batch` does not divide evenly over the ranks.
        ShardError: while iterating; a sample cannot be read.
    """
    if global_batch % size or global_batch < size:
        lower, upper = global_batch // size * size, -(-global_batch // size) * size
        raise ConfigError(
            f"a global batch of {global_batch} pairs does not divide over {size} ranks; "
            f"use {f'{lower} or {upper}' if lower else upper}, or another number of ranks"
        )
    make = _PairMaker(split, labels, config, tokenizer, mean, std, seed)
    slices = rank_slices(order, start_pairs=start_pairs, global_batch=global_batch, rank=rank, size=size)
    return run_workers(make, slices, workers=config.workers, prefetch=config.prefetch, pin_memory=pin_memory)
