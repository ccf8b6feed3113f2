"""Several corpora as one endless stream of pairs, each with its share of every stretch of it.

The stream is cut into blocks of 1024 pairs. In every block each corpus has the same number of places, at
random ones; it fills them with its own stream, without a gap. So where each corpus is at any position is
known without walking there, and the number of pairs consumed stays the whole state of a loader.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from promptmeup.data.order import ORDER_VERSION, Order, generator
from promptmeup.data.spread import uniform

BLOCK = 1024


def places(shares: Sequence[float]) -> tuple[int, ...]:
    """Return how many of a block's places each share gets: at least one, by largest remainder."""
    exact = np.array(shares) / sum(shares) * BLOCK
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmax(counts)] -= 1
    return tuple(counts.tolist())


class Blend:
    """Has what an `Order` has; rows count on from one corpus to the next."""

    def __init__(self, orders: Sequence[Order], shares: Sequence[float], *, seed: int) -> None:
        assert len(orders) == len(shares) > 1
        self.orders = tuple(orders)
        self._places = places(shares)
        self._first_row = np.cumsum([0, *(order.num_rows for order in orders)])
        self.num_pairs = sum(order.num_pairs for order in orders)
        """pairs of all corpora together: what is called an epoch of the blend"""
        self._names = [str(order.identity["fingerprint"]) for order in orders]
        self._seed = seed
        first = orders[0].identity
        self.identity: dict[str, int | str] = first | {
            "fingerprint": "+".join(self._names),
            "blend": ":".join(map(str, self._places)),
        }
        self._block = lru_cache(maxsize=4)(self._make_block)

    def epoch(self, position: int) -> int:
        """Return how often all pairs' worth of the stream has passed before `position`."""
        return position // self.num_pairs

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows at stream positions [start, stop)."""
        assert 0 <= start <= stop
        rows = np.empty(stop - start, dtype=np.int64)
        for first in range(start // BLOCK * BLOCK, stop, BLOCK):
            low, high = max(start, first), min(stop, first + BLOCK)
            block = self._block(first // BLOCK)
            here = block[low - first : high - first]
            for number, order in enumerate(self.orders):
                mask = here == number
                begin = self._own_position(number, low)
                found = order.rows(begin, begin + int(mask.sum())) + self._first_row[number]
                rows[low - start : high - start][mask] = found
        return rows

    def substitute(self, position: int, attempt: int) -> int:
        """Return the row that stands in for a damaged one: of the same corpus."""
        number = int(self._block(position // BLOCK)[position % BLOCK])
        own = self.orders[number].substitute(self._own_position(number, position), attempt)
        return own + int(self._first_row[number])

    def own_positions(self, position: int) -> tuple[int, ...]:
        """Return where each corpus's own stream is at stream position `position`."""
        return tuple(self._own_position(number, position) for number in range(len(self.orders)))

    def _own_position(self, number: int, position: int) -> int:
        block, inside = divmod(position, BLOCK)
        before = np.count_nonzero(self._block(block)[:inside] == number)
        return block * self._places[number] + int(before)

    def _make_block(self, number: int) -> NDArray[np.int64]:
        source = generator("blend", ORDER_VERSION, *self._names, *self._places, self._seed, number)
        corpora = np.repeat(np.arange(len(self._places)), self._places)
        return corpora[np.argsort(uniform(source, BLOCK), kind="stable")]
