"""Batches of examples: the order of training, and rows side by side.

The order is a function of (seed, epoch) alone, so a run goes on after any step, and any number of ranks sees the same
global batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promptmeup.data.text import MULTIPLE
from promptmeup.extraction.examples import Example
from promptmeup.extraction.pictures import Pictures, stacked

Row = tuple[int, float]
"""position of an example, and its weight in the loss of this rank"""


@dataclass(frozen=True)
class ExtractionBatch:
    """What one rank works on at once."""

    inputs: dict[str, Tensor]
    """a model's arguments by name; photos still as uint8"""
    rows: tuple[int, ...]
    """positions of the examples"""
    weights_B: Tensor
    """float32; 0 for a row that only fills up, so that ranks have equally many"""
    keys: tuple[str, ...]
    """the examples' ids, for messages"""

    def to(self, device: torch.device) -> "ExtractionBatch":
        """Return the batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ExtractionBatch":
        """Return the batch in page-locked memory; a DataLoader calls this by its name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ExtractionBatch":
        inputs = {name: change(value) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, weights_B=change(self.weights_B))


class Rows(Dataset[ExtractionBatch]):
    """Whole batches by the rows that are asked for; used by DataLoader's workers.

    Args:
        pictures: None for text only.
    """

    def __init__(self, examples: Sequence[Example], *, pad_id: int, pictures: Pictures | None) -> None:
        self._examples, self._pad_id, self._pictures = examples, pad_id, pictures

    def __getitem__(self, rows: Sequence[Row]) -> ExtractionBatch:
        examples = [self._examples[row] for row, _ in rows]
        inputs = collate(examples, pad_id=self._pad_id)
        if self._pictures is not None:
            found = [self._pictures.read(example.post) for example in examples]
            size, max_crops = self._pictures.size, self._pictures.max_crops
            inputs |= stacked(found, size=size, max_crops=max_crops)
        return ExtractionBatch(
            inputs=inputs,
            rows=tuple(row for row, _ in rows),
            weights_B=torch.tensor([weight for _, weight in rows]),
            keys=tuple(example.post.id for example in examples),
        )


def collate(examples: Sequence[Example], *, pad_id: int) -> dict[str, Tensor]:
    """Return tokens and targets of examples of one task, padded to a multiple of 8 tokens, as a model's arguments."""
    longest = max(len(example.tokens) for example in examples)
    length = -(-longest // MULTIPLE) * MULTIPLE
    tokens_BL = torch.full((len(examples), length), pad_id)
    mask_BL = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens_BL[row, : len(example.tokens)] = torch.tensor(example.tokens)
        mask_BL[row, : len(example.tokens)] = True
    inputs = {"input_ids": tokens_BL, "attention_mask": mask_BL}
    if examples[0].task == "relations":
        inputs["marker_positions"] = torch.tensor([example.places for example in examples])
        if examples[0].target:
            inputs["labels"] = torch.tensor([example.target[0] for example in examples])
        return inputs
    words_BL = torch.zeros_like(mask_BL)
    tags_BL = torch.zeros_like(tokens_BL)
    for row, example in enumerate(examples):
        places = torch.tensor([place for place in example.places if place >= 0], dtype=torch.int64)
        words_BL[row, places] = True
        tags = example.target[: len(places)]  # words are cut off at the end alone
        tags_BL[row, places[: len(tags)]] = torch.tensor(tags, dtype=torch.int64)
    return inputs | {"word_mask": words_BL, "labels": tags_BL}


def steps_per_epoch(num_examples: int, batch: int) -> int:
    """Return how many global batches an epoch has, the last one smaller."""
    return -(-num_examples // batch)


def training_rows(
    num_examples: int, *, batch: int, seed: int, start: int, stop: int, rank: int, size: int
) -> Iterator[list[Row]]:
    """Yield this rank's rows of the global batches of steps [start, stop).

    Weights are such that the mean over ranks of Σ weight x loss is the mean loss of the global batch, whose last one in
    an epoch is smaller. Every rank has equally many rows; what is missing is filled up with weight 0.
    """
    per_epoch = steps_per_epoch(num_examples, batch)
    order = np.empty(0, dtype=np.int64)
    drawn = -1
    for step in range(start, stop):
        epoch, place = divmod(step, per_epoch)
        if epoch != drawn:
            order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_examples)
            drawn = epoch
        rows = order[place * batch : (place + 1) * batch]
        mine = [(int(row), size / len(rows)) for row in rows[rank::size]]
        mine += [(int(rows[0]), 0.0)] * (-(-len(rows) // size) - len(mine))
        yield mine


def evaluation_rows(examples: Sequence[Example], *, batch: int, rank: int, size: int) -> Iterator[list[Row]]:
    """Yield this rank's part of all rows, `batch` at a time; every rank has equally many, filled up with weight 0.

    Sorted by length, so that little is padding: a fifth of the time on tweets, 64 at once.
    """
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].tokens))
    part = -(-len(order) // size)
    mine: list[Row] = [(row, 1.0) for row in order[rank::size]]
    mine += [(row, 0.0) for row in order[:1]] * (part - len(mine))
    for start in range(0, part, batch):
        yield mine[start : start + batch]


def load(
    rows: Rows, order: Iterator[list[Row]], *, workers: int, pin: bool = False
) -> Iterator[ExtractionBatch]:
    """Yield the batches of `order`, made by `workers` processes."""
    return iter(
        DataLoader(
            rows,
            sampler=order,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
        )
    )
