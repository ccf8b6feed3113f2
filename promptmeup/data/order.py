"""The order of pairs in training: a pure function of (corpus, seed, epoch, window), and of nothing else.

An epoch permutes the shards, cuts them into windows of `window` shards, so that reading stays local, and
permutes the pairs inside each window. The epochs follow one another without a gap as one endless stream;
global batch k of G pairs is ``stream[k * G : (k + 1) * G]``. The tail of an epoch is therefore carried
into the next, every rank always has equal steps, and the number of pairs consumed is the whole state of a
loader. Ranks and workers never enter, so any number of them sees the same global batches.

Windows are permuted one at a time, when they are reached: resuming costs one window, and memory too.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
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


def _uniform(source: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), made of the upper 53 bits."""
    raw = np.asarray(source.random_raw(count), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def spread(image_ids_N: NDArray[np.int64], source: np.random.Philox) -> NDArray[np.int64]:
    """Return a random permutation [N] in which the pairs of one image lie far apart.

    A plain shuffle puts two captions of one photo into the same batch again and again, where neither
    is a negative of the other. The c pairs of an image are laid on a circle of length c, one step apart
    from a random start, each moved by up to half a step; all are then sorted by place / c. Neighbours of
    one image keep at least half of the even distance, and no part of the permutation is preferred.
    """
    count = len(image_ids_N)
    by_image_N = np.lexsort((_uniform(source, count), image_ids_N))
    is_first_N = np.ones(count, dtype=bool)
    is_first_N[1:] = np.diff(image_ids_N[by_image_N]) != 0
    first = np.flatnonzero(is_first_N)
    group_N = np.cumsum(is_first_N) - 1
    size_N = np.diff(first, append=count)[group_N]
    step_N = np.arange(count) - first[group_N]
    start_N = _uniform(source, len(first))[group_N]
    place_N = np.mod(step_N + start_N + _uniform(source, count) / 2, size_N) / size_N
    return by_image_N[np.argsort(place_N, kind="stable")]


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
        keep_N: NDArray[np.bool_] | None = None,
    ) -> None:
        """`shard_pairs` counts the rows of pairs.npy by shard; N is their sum.

        Args:
            image_ids_N: the image of each row, to spread the pairs of one image.
            corpus: fingerprint of the packed split.
            window: shards permuted together.
            pairs: name of the filter that made `keep_N`, for the fingerprint.
            keep_N: rows that take part; all of them when None.
        """
        self._bounds = np.concatenate([[0], np.cumsum(shard_pairs, dtype=np.int64)])
        assert self._bounds[-1] == len(image_ids_N)
        assert window > 0
        self._image_ids_N = image_ids_N
        self._keep_N = keep_N
        self._kept = np.array(shard_pairs, dtype=np.int64)
        if keep_N is not None:
            edges = zip(self._bounds[:-1], self._bounds[1:], strict=True)
            self._kept = np.array([np.count_nonzero(keep_N[a:b]) for a, b in edges], dtype=np.int64)
        self.num_pairs = int(self._kept.sum())
        assert self.num_pairs > 0
        self._window = window
        self._names = (ORDER_VERSION, corpus, seed)
        self.fingerprint = f"order={ORDER_VERSION} corpus={corpus} seed={seed} window={window} pairs={pairs}"
        self._epoch = -1  # the epoch that _shards and _starts describe
        self._shards = np.zeros(0, dtype=np.int64)
        self._starts = np.zeros(0, dtype=np.int64)
        self._number = (-1, -1)  # the (epoch, window) that _rows holds
        self._rows = np.zeros(0, dtype=np.int64)

    def epoch(self, position: int) -> int:
        """Return the epoch, from 0, that stream position `position` lies in."""
        return position // self.num_pairs

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of pairs.npy at stream positions [start, stop)."""
        assert 0 <= start <= stop
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.num_pairs)
            self._plan(epoch)
            number = int(np.searchsorted(self._starts, offset, side="right")) - 1
            rows = self._window_rows(epoch, number)
            inside = offset - int(self._starts[number])
            part = rows[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _plan(self, epoch: int) -> None:
        """Permute the shards of `epoch` and find where its windows start."""
        if epoch == self._epoch:
            return
        source = generator("shards", *self._names, epoch)
        self._shards = np.argsort(_uniform(source, len(self._kept)), kind="stable")
        totals = np.concatenate([[0], np.cumsum(self._kept[self._shards])])
        self._starts = totals[:-1][:: self._window]
        self._epoch = epoch

    def _window_rows(self, epoch: int, number: int) -> NDArray[np.int64]:
        if self._number != (epoch, number):
            shards = self._shards[number * self._window : (number + 1) * self._window]
            rows = np.concatenate([np.arange(self._bounds[s], self._bounds[s + 1]) for s in shards])
            if self._keep_N is not None:
                rows = rows[self._keep_N[rows]]
            source = generator("pairs", *self._names, epoch, number)
            self._rows = rows[spread(np.asarray(self._image_ids_N[rows]), source)]
            self._number = (epoch, number)
        return self._rows
