"""What a run trains on: one packed split or several, their soft labels, and the order of all their pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptmeup.data.blend import Blend
from promptmeup.data.order import Order, Stream
from promptmeup.data.reader import LabelReader, PackedSplit, PairFilter
from promptmeup.errors import ShardError
from promptmeup.shard_format import key_id, text_id


def training_order(split: PackedSplit, *, seed: int, window: int, pairs: PairFilter) -> Order:
    """Return the order in which the pairs of `split` are trained on.

    Raises:
        ShardError: the split has no such pair.
    """
    shards = split.manifest.shards
    matched = sum(entry.matched_pairs for entry in shards)
    if not (matched if pairs == "matched" else split.manifest.pairs):
        raise ShardError(
            f"{split.folder} has {split.manifest.pairs} pairs, {matched} of them "
            f"matched; data.pairs={pairs} leaves none: choose another split or filter"
        )

    def keep(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        chosen = split.pairs[rows]
        return np.asarray(chosen["image_id"] == chosen["caption_id"])

    only_matched: dict[str, Any] = {"kept": [entry.matched_pairs for entry in shards], "keep": keep}
    return Order(
        split.shard_pairs,
        split.pairs["image_id"],
        corpus=split.manifest.fingerprint,
        seed=seed,
        window=window,
        pairs=pairs,
        **(only_matched if pairs == "matched" else {}),
    )


def _origin(split: PackedSplit) -> Any:
    """Return the folder that the names of a split's photos are relative to; None where its manifest is silent."""
    photos = split.manifest.packed_with.get("photos") or {}
    return photos.get("image_root")


@dataclass(frozen=True)
class Sources:
    """The corpora of a run. Rows of the stream count on from one corpus's pairs.npy to the next."""

    splits: tuple[PackedSplit, ...]
    shares: tuple[float, ...]
    """of the pairs, by split; sum 1"""
    seed: int
    window: int
    pairs: PairFilter
    labels: tuple[LabelReader, ...] | None = None
    """by split"""

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """By split."""
        return tuple(
            training_order(split, seed=self.seed, window=self.window, pairs=self.pairs)
            for split in self.splits
        )

    @cached_property
    def stream(self) -> Stream:
        """The order of all pairs."""
        return self.orders[0] if len(self.orders) == 1 else Blend(self.orders, self.shares, seed=self.seed)

    @property
    def identity(self) -> dict[str, int | str]:
        """What a resumed run must find unchanged: all that the order depends on, and the soft labels."""
        names = {"labels": " ".join(reader.folder.name for reader in self.labels)} if self.labels else {}
        return dict(self.stream.identity) | names

    @cached_property
    def _salts(self) -> tuple[int, ...]:
        """By split: what ids of images are mixed with, so that photos of the same name in two corpora stay two."""
        origins = [_origin(split) for split in self.splits]
        firsts = [origins.index(origin) for origin in origins]
        return tuple(key_id(text_id(f"corpus {first}")) if first else 0 for first in firsts)

    def own_id(self, number: int, image_id: int) -> int:
        """Return an `image_id` of split `number` as it is told apart in a batch.

        Splits that were packed of one corpus show the same photos: there an id stays one.
        """
        return image_id ^ self._salts[number]

    @cached_property
    def _first_row(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(split.pairs) for split in self.splits)])

    def find(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the splits that rows of the stream belong to, and the rows there."""
        numbers = np.searchsorted(self._first_row, rows, side="right") - 1
        return numbers, rows - self._first_row[numbers]


def single(
    split: PackedSplit,
    *,
    seed: int,
    window: int,
    pairs: PairFilter = "all",
    labels: LabelReader | None = None,
) -> Sources:
    """Return the sources that are one split."""
    return Sources((split,), (1.0,), seed, window, pairs, (labels,) if labels else None)


def shares_of(blend: Sequence[float]) -> tuple[float, ...]:
    """Return all shares, the first split's included, which has what `blend` leaves."""
    return (1 - sum(blend), *blend)
