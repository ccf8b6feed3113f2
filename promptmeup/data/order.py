"""The order of pairs in training: a pure function of (corpus, seed, epoch, window), and of nothing else.

An epoch permutes the shards, cuts them into windows of about `window` shards, so that reading stays local,
and permutes the pairs inside each window. The epochs follow one another without a gap as one endless stream;
global batch k of G pairs is ``stream[k * G : (k + 1) * G]``. The tail of an epoch is therefore carried
into the next, every rank always has equal steps, and the number of pairs consumed is the whole state of a
loader. Ranks and workers never enter, so any number of them sees the same global batches.

Windows are permuted one at a time, when they are reached: resuming costs one window, and memory too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from promptmeup.data.spread import apart, apart_from_before, spread, uniform

ORDER_VERSION = 2
"""Raise it whenever the same seed would give another order: old checkpoints are then refused."""


def generator(*values: int | str) -> np.random.Philox:
    """Return a random source that is a function of `values` alone.

    Philox is counter-based and its raw output is fixed for all NumPy versions, unlike what
    ``Generator.permutation`` makes of it (NEP 19); the order uses the raw output only.
    """
    text = "\n".join(str(value) for value in values)
    return np.random.Philox(
        key=int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    )


@dataclass(frozen=True)
class _Epoch:
    shards: NDArray[np.int64]
    """in the order in which they are read"""
    edges: NDArray[np.int64]
    """[windows + 1] positions in `shards`"""
    starts: NDArray[np.int64]
    """[windows + 1] positions of pairs, from the start of the epoch"""


class Stream(Protocol):
    """An endless order of rows: of one corpus (`Order`) or of several (`blend.Blend`)."""

    num_pairs: int
    """of an epoch"""
    identity: dict[str, int | str]

    def epoch(self, position: int) -> int: ...
    def rows(self, start: int, stop: int) -> NDArray[np.int64]: ...
    def substitute(self, position: int, attempt: int) -> int: ...
    def own_positions(self, position: int) -> tuple[int, ...]: ...


class Order:
    """The endless stream of pairs of one packed split."""

    def __init__(
        self,
        shard_pairs: Sequence[int],
        image_ids_N: NDArray[np.int64],
        *,
        corpus: str,
        seed: int,
        window: int,
        pairs: str = "all",
        kept: Sequence[int] | None = None,
        keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> None:
        """`shard_pairs` counts the rows of pairs.npy by shard; N is their sum.

        Args:
            image_ids_N: the image of each row, to spread the pairs of one image; read window by window.
            corpus: fingerprint of the packed split.
            window: shards permuted together.
            pairs: name of the filter.
            kept, keep: the filter: how many rows of each shard take part, and which of given rows do;
                all when None.
        """
        self._bounds = np.concatenate([[0], np.cumsum(shard_pairs, dtype=np.int64)])
        self.num_rows = len(image_ids_N)
        assert self._bounds[-1] == self.num_rows
        assert window > 0
        self._image_ids_N = image_ids_N
        self._keep = keep
        self._kept = np.array(shard_pairs if kept is None else kept, dtype=np.int64)
        assert len(self._kept) == len(shard_pairs)
        self.num_pairs = int(self._kept.sum())
        assert self.num_pairs > 0
        self.num_windows = -(-len(shard_pairs) // window)
        self._names = (ORDER_VERSION, corpus, seed)
        self.identity: dict[str, int | str] = {
            "order_version": ORDER_VERSION,
            "fingerprint": corpus,
            "seed": seed,
            "window": window,
            "pairs": pairs,
        }
        """everything that the order depends on: a resumed run must have the same"""
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._mixed = lru_cache(maxsize=2)(self._mix)
        self._window_rows = lru_cache(maxsize=2)(self._make_window)

    def epoch(self, position: int) -> int:
        """Return the epoch, from 0, that stream position `position` lies in."""
        return position // self.num_pairs

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of pairs.npy at stream positions [start, stop)."""
        assert 0 <= start <= stop
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            epoch, number, inside = self._find(start)
            part = self._window_rows(epoch, number)[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def substitute(self, position: int, attempt: int) -> int:
        """Return the row that stands in for the one at stream position `position`, whose data is damaged.

        It is half a window away, so in no batch near by, and in the same window, whose shards are at hand.
        """
        epoch, number, inside = self._find(position)
        rows = self._window_rows(epoch, number)
        step = len(rows) // 31 + 1
        return int(rows[(inside + len(rows) // 2 + attempt * step) % len(rows)])

    def own_positions(self, position: int) -> tuple[int, ...]:
        """Return ``(position,)``: an order is a blend of one."""
        return (position,)

    def window(self, position: int) -> int:
        """Return how many windows the stream has passed before `position`."""
        epoch, number, _ = self._find(position)
        return epoch * self.num_windows + number

    def window_shards(self, window: int) -> NDArray[np.int64]:
        """Return the shards that a window of the stream reads."""
        return self._shards(*divmod(window, self.num_windows))

    def _find(self, position: int) -> tuple[int, int, int]:
        """Return epoch, window and place in the window of a stream position."""
        epoch, offset = divmod(position, self.num_pairs)
        starts = self._plan(epoch).starts
        number = int(np.searchsorted(starts, offset, side="right")) - 1
        return epoch, number, offset - int(starts[number])

    def _make_plan(self, epoch: int) -> _Epoch:
        source = generator("shards", *self._names, epoch)
        shards = np.argsort(uniform(source, len(self._kept)), kind="stable")
        # windows of nearly equal size: a last one of a single shard would mix worse
        edges = np.arange(self.num_windows + 1) * len(shards) // self.num_windows
        totals = np.concatenate([[0], np.cumsum(self._kept[shards])])
        return _Epoch(shards, edges, totals[edges])

    def _shards(self, epoch: int, number: int) -> NDArray[np.int64]:
        plan = self._plan(epoch)
        return plan.shards[plan.edges[number] : plan.edges[number + 1]]

    def _mix(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and their images of a window, without a look at what came before."""
        shards = self._shards(epoch, number)
        rows = np.concatenate([np.arange(self._bounds[s], self._bounds[s + 1]) for s in shards])
        if self._keep is not None:
            rows = rows[self._keep(rows)]
        images = np.asarray(self._image_ids_N[rows])
        source = generator("pairs", *self._names, epoch, number)
        order = spread(images, source)
        order = order[apart(images[order], source)]
        return rows[order], images[order]

    def _make_window(self, epoch: int, number: int) -> NDArray[np.int64]:
        rows, images = self._mixed(epoch, number)
        last = self.num_windows - 1
        if number == 0 and epoch > 0 and np.isin(self._shards(epoch, 0), self._shards(epoch - 1, last)).any():
            # only the last third of the window before counts, and nothing below changes a last third: epochs
            # do not depend on all earlier ones
            _, before = self._mixed(epoch - 1, last)
            source = generator("seam", *self._names, epoch)
            rows = rows[apart_from_before(images, before, source)]
        return rows
