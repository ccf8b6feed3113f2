"""Training batches of one rank, made by worker processes.

The main process walks along the order and hands out slices of pair rows; a worker reads, decodes,
augments and collates one slice. What a batch holds depends on its position in the order alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from promptmeup.data.collate import Example, collate
from promptmeup.data.device import on_device
from promptmeup.data.order import Stream, generator
from promptmeup.data.reader import DamagedSampleError, PackedSplit, Stored
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import Sources
from promptmeup.data.stager import Stager
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import apply_view, color_images, decode, draw_color, draw_view
from promptmeup.data.workers import run_workers
from promptmeup.errors import ConfigError, ShardError
from promptmeup.records import Batch, Substitute

SUBSTITUTES = 16
"""Pairs tried in place of a damaged one before the shards are given up."""


_Place = tuple[int, int, Stored | DamagedSampleError]
"""A pair: number of its split, row of the split's pairs.npy, and what its shard holds of it."""


@dataclass(frozen=True)
class _PairMaker:
    """Makes the batch of a slice of the order."""

    sources: Sources
    config: DataConfig
    tokenizer: TextTokenizer
    seed: int
    color: bool
    """whether colours are changed here, and not later on the device"""

    def example(self, position: int, place: _Place) -> Example:
        """Return a pair, augmented; the chance in it depends on its `position` in the order.

        Raises:
            DamagedSampleError: it cannot be read or decoded.
            ShardError: its whole shard has vanished or was changed.
        """
        number, own_row, stored = place
        if isinstance(stored, DamagedSampleError):
            raise stored
        split, pair = self.sources.splits[number], self.sources.splits[number].pairs[own_row]
        sample, record = stored.sample, stored.record
        image_CHW = decoded(split, stored)
        boxes_M4 = np.array(
            [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in record["boxes"]], dtype=np.float32
        ).reshape(-1, 4)
        config = self.config.image
        random = np.random.Generator(generator("augment", self.seed, position))
        view = draw_view(image_CHW.shape[1], image_CHW.shape[2], config, random)
        image_CSS, fractions_M4 = apply_view(image_CHW, boxes_M4, view, size=config.size)
        labels = self.sources.labels[number] if self.sources.labels else None
        text, caption_id = record["captions"][int(pair["caption"])]["text"], int(pair["caption_id"])
        if self.config.mismatched and caption_id == pair["image_id"]:
            text, caption_id = self._caption(split, pair, position) or (text, caption_id)
        return Example(
            key=record["key"],
            image_id=self.sources.own_id(number, int(pair["image_id"])),
            caption_id=self.sources.own_id(number, caption_id),
            text=text,
            image_CSS=image_CSS,
            color_3=draw_color(config.color_jitter, random),
            boxes_M4=fractions_M4,
            object_labels=labels.objects(sample) if labels else None,
            image_label=labels.image(sample) if labels else None,
        )

    def _caption(self, split: PackedSplit, pair: np.void, position: int) -> tuple[str, int] | None:
        """Return another photo's caption and id for a share of the pairs, None for the others.

        It is of the same shard, which is at hand; none where a random one turns out to be the photo's own, or damaged.
        """
        random = np.random.Generator(generator("mismatch", self.seed, position))
        if random.random() >= self.config.mismatched:
            return None
        shard = int(split.index["shard"][pair["sample"]])
        other = split.pairs[random.integers(split.first_pairs[shard], split.first_pairs[shard + 1])]
        if other["caption_id"] == pair["image_id"]:
            return None
        try:
            captions = split.read_json(int(other["sample"]))["captions"]
        except DamagedSampleError:
            return None
        return captions[int(other["caption"])]["text"], int(other["caption_id"])

    def read(self, rows: NDArray[np.int64]) -> list[_Place]:
        """Read the samples of pair rows, in order."""
        numbers, own_rows = self.sources.find(rows)
        places: dict[int, _Place] = {}
        for number, split in enumerate(self.sources.splits):
            mine = np.flatnonzero(numbers == number)
            samples = split.pairs["sample"][own_rows[mine]]
            found = split.read(samples, checksums=self.config.checksums)
            for place, stored in zip(mine.tolist(), found, strict=True):
                places[place] = number, int(own_rows[place]), stored
        return [places[place] for place in range(len(rows))]

    def substitute(self, position: int, damage: DamagedSampleError) -> tuple[Example, Substitute]:
        """Return another pair for the slot at `position`: the same one on any number of ranks and workers."""
        for attempt in range(SUBSTITUTES):
            (place,) = self.read(np.array([self.sources.stream.substitute(position, attempt)]))
            with contextlib.suppress(DamagedSampleError):
                example = self.example(position, place)
                return example, Substitute(
                    position, damage.shard, damage.key, damage.offset, damage.reason, example.key
                )
        raise ShardError(
            f"{damage}. {SUBSTITUTES} pairs that were to take its place are damaged too: run shards/verify.py, "
            "restore the shards that it names, then start the same command again"
        )

    def __call__(self, item: tuple[int, NDArray[np.int64]]) -> Batch:
        start, rows = item
        examples, substitutes = [], []
        for position, place in enumerate(self.read(rows), start):
            try:
                example = self.example(position, place)
            except DamagedSampleError as damage:
                example, substitute = self.substitute(position, damage)
                substitutes.append(substitute)
            examples.append(example)
        batch = collate(
            examples,
            tokenizer=self.tokenizer,
            max_tokens=self.config.max_tokens,
            max_objects=self.config.max_objects,
            min_confidence=self.config.min_confidence,
            substitutes=tuple(substitutes),
        )
        return color_images(batch) if self.color else batch


def decoded(split: PackedSplit, stored: Stored) -> torch.Tensor:
    """Return the image of a sample as uint8 RGB [3, height, width].

    Raises:
        DamagedSampleError: it cannot be decoded.
        ShardError: its whole shard was changed.
    """
    try:
        return decode(stored.image)
    except ValueError as error:
        raise split.damaged(stored.sample, str(error)) from error


def staged(
    slices: Iterator[tuple[int, NDArray[np.int64]]], sources: Sources
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Pass the slices on, while the remote shards of the window behind theirs are fetched in the background."""
    stagers = {
        number: Stager(split.remote)
        for number, split in enumerate(sources.splits)
        if split.remote is not None
    }
    windows: dict[int, int] = {}
    try:
        for position, rows in slices:
            own = sources.stream.own_positions(position)
            for number, stager in stagers.items():
                order, window = sources.orders[number], sources.orders[number].window(own[number])
                if windows.get(number) != window:
                    windows[number] = window
                    # this window's too: at the start, and where other ranks have not brought them yet
                    shards = [*order.window_shards(window), *order.window_shards(window + 1)]
                    entries = [sources.splits[number].manifest.shards[shard] for shard in shards]
                    stager.stage([(entry.name, entry.bytes, entry.sha256) for entry in entries])
            yield position, rows
    finally:
        for stager in stagers.values():
            stager.close()


def rank_slices(
    stream: Stream, *, start_pairs: int, global_batch: int, rank: int, size: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield position and rows of this rank's part of every global batch from `start_pairs` on, for ever."""
    local = global_batch // size
    start = start_pairs + rank * local
    while True:
        yield start, stream.rows(start, start + local)
        start += global_batch


def train_batches(
    sources: Sources,
    *,
    config: DataConfig,
    tokenizer: TextTokenizer,
    start_pairs: int,
    global_batch: int,
    rank: int,
    size: int,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Return the endless batches of rank `rank` of `size`, from pair `start_pairs` of the order on.

    Together the ranks see the same global batches whatever `size` and `config.workers` are; only the
    padded length of tokens may differ. Batches read ahead do not count: the caller adds `global_batch`
    to its position for every batch it has used.

    Args:
        start_pairs: pairs consumed so far by all ranks together (`RunState.pairs_consumed`).
        device: where the batches are wanted; on a GPU, colours are changed there.

    Raises:
        ConfigError: `global_batch` does not divide evenly over the ranks.
        ShardError: while iterating; a shard cannot be read, or too many samples are damaged.
    """
    if global_batch % size or global_batch < size:
        lower, upper = global_batch // size * size, -(-global_batch // size) * size
        raise ConfigError(
            f"a global batch of {global_batch} pairs does not divide over {size} ranks; "
            f"use {f'{lower} or {upper}' if lower else upper}, or another number of ranks"
        )
    device = device or torch.device("cpu")
    on_gpu = device.type != "cpu"
    make = _PairMaker(sources, config, tokenizer, sources.seed, color=not on_gpu)
    slices = rank_slices(
        sources.stream, start_pairs=start_pairs, global_batch=global_batch, rank=rank, size=size
    )
    slices = staged(slices, sources)
    batches = run_workers(
        make, slices, workers=config.workers, prefetch=config.prefetch, pin_memory=device.type == "cuda"
    )
    return on_device(batches, device) if on_gpu else batches
