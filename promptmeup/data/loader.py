"""Training batches of one rank, made by worker processes.

The main process walks along the order and hands out slices of pair rows; a worker reads, decodes,
augments and collates one slice. What a batch holds depends on its position in the order alone.
"""

import os
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, Dataset

from promptmeup.config import Config
from promptmeup.data.collate import Example, collate
from promptmeup.data.order import Order, generator
from promptmeup.data.reader import LabelReader, PackedSplit, PairFilter
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import ImageConfig, apply_view, decode, draw_view, jitter
from promptmeup.errors import ConfigError, ShardError, UserError
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


Item = TypeVar("Item")
Made = TypeVar("Made")


class _Task(Dataset[Any]):
    """A function in the shape that DataLoader wants."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, item: Any) -> Any:
        # A user's mistake is returned: DataLoader would wrap a raised one into a traceback as its message.
        try:
            return self._make(item)
        except UserError as error:
            return error


def _as_is(made: Made) -> Made:
    return made


def _prepare_worker(_: int) -> None:
    """Leave signals to the training process: it stops at a step boundary and then ends its workers.

    Slurm and Ctrl-C signal every process of a job; a worker that died of it would end the step before
    the checkpoint. Workers notice by themselves when their parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def run_workers(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Iterator[Made]:
    """Yield ``make(item)`` in the order of `items`, made in `workers` processes.

    The workers end with the iterator: when it is exhausted, dropped, or the process leaves.

    Raises:
        UserError: the one that `make` raised, as it was raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _Task(make),
        batch_size=None,  # an item is a whole batch already
        sampler=items,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
    )
    made = _iterate(loader)
    reference = weakref.ref(made)
    # multiprocessing ends its children with SIGTERM at exit and waits for them. Ours ignore it, so the
    # iterator has to be closed before that: finalizers run first, and those of queues have priority 10.
    Finalize(made, _close, args=(reference,), exitpriority=20)
    return made


def _iterate(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    try:
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made
    finally:
        # The last reference ends the workers, now and not when a traceback that holds this frame is gone.
        del loader


def _close(reference: "weakref.ref[Generator[Any, None, None]]") -> None:
    made = reference()
    if made is not None:
        made.close()
