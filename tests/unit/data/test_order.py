"""The order of pairs: a permutation each epoch, spread, local, carried over, independent of ranks."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup.data.loader import rank_slices
from promptmeup.data.order import Order, generator, spread


def make_order(shard_pairs, *, seed=3, window=2, per_image=2, keep=None, fingerprint="c0ffee", pairs="all"):
    image_ids = np.arange(sum(shard_pairs)) // per_image
    chosen = {}
    if keep is not None:
        edges = np.cumsum([0, *shard_pairs])
        kept = [int(keep[a:b].sum()) for a, b in pairwise(edges)]
        chosen = {"keep": lambda rows: keep[rows], "kept": kept}
    return Order(shard_pairs, image_ids, corpus=fingerprint, seed=seed, window=window, pairs=pairs, **chosen)


shards = st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(lambda counts: sum(counts) > 0)


@settings(max_examples=60, deadline=None)
@given(shards, st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 5))
def test_every_epoch_is_a_permutation(shard_pairs, seed, window, per_image):
    order = make_order(shard_pairs, seed=seed, window=window, per_image=per_image)
    total = sum(shard_pairs)
    assert order.num_pairs == total
    for epoch in range(3):
        rows = order.rows(epoch * total, (epoch + 1) * total)
        assert sorted(rows) == list(range(total))


@settings(max_examples=60, deadline=None)
@given(shards, st.integers(0, 200), st.integers(0, 60), st.integers(1, 40))
def test_any_slice_equals_the_stream(shard_pairs, start, length, earlier):
    stream = make_order(shard_pairs).rows(0, start + length)
    order = make_order(shard_pairs)
    order.rows(earlier, 2 * earlier)  # reading elsewhere before leaves no trace
    assert np.array_equal(order.rows(start, start + length), stream[start:])


@settings(max_examples=60, deadline=None)
@given(shards, st.integers(1, 9), st.integers(0, 50), st.integers(1, 3), st.integers(1, 4))
def test_ranks_make_up_the_same_global_batches(shard_pairs, size, start, local, batches):
    global_batch = local * size
    whole = make_order(shard_pairs).rows(start, start + batches * global_batch)
    parts = [
        rank_slices(
            make_order(shard_pairs), start_pairs=start, global_batch=global_batch, rank=rank, size=size
        )
        for rank in range(size)
    ]
    for k in range(batches):
        pieces = [next(part) for part in parts]
        first = start + k * global_batch
        assert [position for position, _ in pieces] == [first + rank * local for rank in range(size)]
        rows = np.concatenate([rows for _, rows in pieces])
        assert np.array_equal(rows, whole[k * global_batch : (k + 1) * global_batch])


def test_epochs_and_seeds_and_corpora_differ():
    shard_pairs, total = [50] * 6, 300
    order = make_order(shard_pairs)
    epochs = [tuple(order.rows(e * total, (e + 1) * total)) for e in range(4)]
    others = [
        make_order(shard_pairs, seed=4),
        make_order(shard_pairs, fingerprint="other"),
        make_order(shard_pairs, window=3),
    ]
    epochs += [tuple(other.rows(0, total)) for other in others]
    assert len(set(epochs)) == 7


def test_order_is_the_recorded_one():
    # A golden value: if this fails, checkpoints would go on with other data. Raise ORDER_VERSION.
    assert make_order([5, 7, 3]).rows(0, 15).tolist() == [0, 3, 4, 1, 2, 6, 13, 9, 10, 14, 7, 8, 11, 12, 5]


def test_tail_is_carried_into_the_next_epoch():
    order = make_order([5, 5])
    batches = [order.rows(k * 4, k * 4 + 4) for k in range(5)]
    assert sorted(np.concatenate(batches)) == sorted([*range(10), *range(10)])
    assert [order.epoch(k * 4) for k in range(5)] == [0, 0, 0, 1, 1]


def test_windows_are_read_one_after_the_other():
    order = make_order([10] * 9, window=3)
    shard_of = order.rows(0, 90) // 10
    windows = [set(shard_of[i * 30 : (i + 1) * 30]) for i in range(3)]
    assert [len(window) for window in windows] == [3, 3, 3]
    assert set.union(*windows) == set(range(9))


def test_only_kept_rows_take_part():
    keep = np.zeros(30, dtype=bool)
    keep[[0, 1, 7, 21]] = True
    order = make_order([10, 10, 10], keep=keep, pairs="matched")
    assert order.num_pairs == 4
    assert sorted(order.rows(4, 8)) == [0, 1, 7, 21]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(0, 10**6))
def test_spread_is_a_permutation(counts, seed):
    ids = np.repeat(np.arange(len(counts)), counts)
    assert sorted(spread(ids, generator(seed))) == list(range(len(ids)))


def test_no_image_twice_in_a_batch():
    # 400 photos with five captions each: the pairs of one photo are 400 apart on average
    order = make_order([250] * 8, window=8, per_image=5)
    rows = order.rows(0, 2000)
    for start in range(0, 2000 - 128, 128):
        images = rows[start : start + 128] // 5
        assert len(set(images)) == 128


@pytest.mark.parametrize("pair", [0, 5], ids=["only pair of its image", "one of five"])
def test_spread_prefers_no_part(pair):
    ids = np.array([0] + [1, 2, 3] * 5 + [4] * 4)
    places = [int(np.argmax(spread(ids, generator("place", seed)) == pair)) for seed in range(2000)]
    quarters = np.bincount(places, minlength=20).reshape(4, 5).sum(1)
    assert quarters.min() > 400
    assert quarters.max() < 600


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"fingerprint": "other"}, {"window": 5}, {"pairs": "matched"}], ids=str
)
def test_identity_names_everything_that_the_order_depends_on(change):
    base, other = make_order([4, 4]).identity, make_order([4, 4], **change).identity
    assert make_order([4, 4]).identity == base
    assert {name for name in base if base[name] != other[name]} == set(change)
    assert other.items() >= change.items()


def image_sets():
    """Shards as lists of how many captions each image has."""
    return st.lists(st.lists(st.integers(1, 4), min_size=6, max_size=40), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(image_sets(), st.integers(0, 2**40), st.integers(1, 5), st.integers(0, 10**6))
def test_no_image_twice_in_a_global_batch_also_across_epochs(counts, seed, window, start):
    captions = np.concatenate(counts)
    ids = np.repeat(np.arange(len(captions)), captions)
    order = Order([sum(shard) for shard in counts], ids, corpus="x", seed=seed, window=window)
    smallest = min(len(order.rows(*edges)) for edges in window_edges(order) if edges[0] < 4 * order.num_pairs)
    # what `spread.gaps` promises: a third of the even distance of the image with the most captions
    batch = max(1, smallest // (4 * int(captions.max())))
    start %= batch
    for first in range(start, 3 * order.num_pairs, batch):
        images = ids[order.rows(first, first + batch)]
        assert len(set(images)) == len(images)


def window_edges(order):
    edges, position = [0], 0
    while position < 4 * order.num_pairs:
        now = order.window(position)
        while order.window(position) == now:
            position += 1
        edges.append(position)
    return list(pairwise(edges))


def test_an_image_with_many_captions_does_not_bring_the_others_together():
    ids = np.concatenate([np.zeros(200, dtype=int), np.arange(1, 2001).repeat(2)])
    order = Order([len(ids)], ids, corpus="x", seed=0, window=1)
    for first in range(0, 3 * len(ids), 512):
        images = ids[order.rows(first, first + 512)]
        others = images[images != 0]
        assert len(set(others)) == len(others)
        assert np.count_nonzero(images == 0) <= 2 * 512 * 200 / len(ids)


def test_windows_are_of_nearly_equal_size():
    order = make_order([10] * 9, window=8)
    assert [len(order.window_shards(k)) for k in range(4)] == [4, 5, 4, 5]
    for epoch in range(2):
        shards = [s for k in range(2) for s in order.window_shards(2 * epoch + k)]
        assert sorted(shards) == list(range(9))


def test_substitutes_come_from_the_same_window_and_from_far_away():
    order = make_order([40] * 6, window=2)
    for position in (0, 79, 80, 240, 300, 719):
        shards = set(order.window_shards(order.window(position)).tolist())
        row = int(order.rows(position, position + 1)[0])
        tried = [order.substitute(position, attempt) for attempt in range(8)]
        assert len(set(tried)) == 8
        assert row not in tried
        assert {t // 40 for t in tried} <= shards
    near = set(order.rows(100, 120).tolist())
    assert all(order.substitute(p, 0) not in near for p in range(100, 120))


def test_resuming_looks_at_two_windows_alone():
    class Watched:
        """Image ids that remember which rows were looked at."""

        def __init__(self):
            self.seen = set()

        def __len__(self):
            return 10_000

        def __getitem__(self, rows):
            self.seen.update(rows.tolist())
            return rows

    ids = Watched()
    order = Order([100] * 100, ids, corpus="x", seed=0, window=4)
    order.rows(55_500, 55_550)
    assert len(ids.seen) <= 2 * 4 * 100
