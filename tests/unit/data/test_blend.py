"""Several corpora in one stream: exact shares, every corpus's own order kept, any slice at once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup.data.blend import BLOCK, Blend, places
from promptmeup.data.order import Order

SIZES = (300, 1000, 50)


def make_blend(shares=(0.5, 0.3, 0.2), *, seed=1):
    orders = [
        Order([size // 2, size - size // 2], np.arange(size), corpus=f"c{size}", seed=seed, window=2)
        for size in SIZES[: len(shares)]
    ]
    return Blend(orders, shares, seed=seed)


def split_rows(rows):
    """Own rows of each corpus, in the order in which they come."""
    edges = np.cumsum([0, *SIZES])
    return [rows[(rows >= a) & (rows < b)] - a for a, b in pairwise(edges)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=8))
def test_places_fill_a_block_and_none_is_left_out(shares):
    counts = places(shares)
    assert sum(counts) == BLOCK
    assert min(counts) >= 1
    exact = np.array(shares) / sum(shares) * BLOCK
    assert np.abs(np.array(counts) - exact).max() <= len(shares)


def test_each_corpus_has_its_share_and_its_own_order():
    blend = make_blend()
    parts = split_rows(blend.rows(0, 10 * BLOCK))
    assert [len(part) for part in parts] == [5120, 3070, 2050]
    for order, part in zip(blend.orders, parts, strict=True):
        assert np.array_equal(part, order.rows(0, len(part)))
    # the shares hold in every stretch, too
    assert 0.4 < len(split_rows(blend.rows(3000, 3200))[0]) / 200 < 0.6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 3000))
def test_any_slice_equals_the_stream(start, length):
    stream = make_blend().rows(0, start + length)
    assert np.array_equal(make_blend().rows(start, start + length), stream[start:])


def test_own_positions_say_how_much_of_each_corpus_has_passed():
    blend = make_blend()
    for position in (0, 1, 1023, 1024, 5000):
        expected = tuple(len(part) for part in split_rows(blend.rows(0, position)))
        assert blend.own_positions(position) == expected


def test_substitutes_are_of_the_same_corpus():
    blend = make_blend()
    edges = np.cumsum(SIZES)
    for position in range(500, 540):
        row = int(blend.rows(position, position + 1)[0])
        other = blend.substitute(position, 0)
        assert other != row
        assert np.searchsorted(edges, other, side="right") == np.searchsorted(edges, row, side="right")


@pytest.mark.parametrize("change", [{"seed": 2}, {"shares": (0.4, 0.4, 0.2)}])
def test_seed_and_shares_change_order_and_identity(change):
    one, other = make_blend(), make_blend(**change)
    assert one.identity != other.identity
    assert not np.array_equal(one.rows(0, 200), other.rows(0, 200))
