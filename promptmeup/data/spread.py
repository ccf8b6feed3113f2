"""Permutations in which the pairs of one image lie far apart: two captions of it are no negatives of each other.

`spread` does it on average; `apart` and `apart_from_before` then move the few pairs that still lie closer
than `gaps`, so that no global batch up to that size shows an image twice.
"""

import numpy as np
from numpy.typing import NDArray

TRIES = 100
"""Places looked at for one pair. Where none will do, the corpus does not allow it, and the pair stays."""


def uniform(source: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), made of the upper 53 bits."""
    raw = np.asarray(source.random_raw(count), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def spread(image_ids_N: NDArray[np.int64], source: np.random.Philox) -> NDArray[np.int64]:
    """Return a random permutation [N] in which the pairs of one image lie far apart.

    A plain shuffle puts two captions of one photo into the same batch again and again, where neither
    is a negative of the other. The c pairs of an image are laid on a circle of length c, one step apart
    from a random start, each moved by up to half a step; all are then sorted by place / c. Neighbours of
    one image keep about half of the even distance at least, and no part of the permutation is preferred.
    """
    count = len(image_ids_N)
    by_image_N = np.lexsort((uniform(source, count), image_ids_N))
    group_N, first = _groups(image_ids_N[by_image_N])
    size_N = np.diff(first, append=count)[group_N]
    step_N = np.arange(count) - first[group_N]
    start_N = uniform(source, len(first))[group_N]
    place_N = np.mod(step_N + start_N + uniform(source, count) / 2, size_N) / size_N
    return by_image_N[np.argsort(place_N, kind="stable")]


def gaps(image_ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each pair how far it should be from the other c - 1 of its image: N / 3c.

    A third of the even distance, so that there is room to move pairs and the seam of two epochs too.
    """
    by_image_N = np.argsort(image_ids_N, kind="stable")
    group_N, first = _groups(image_ids_N[by_image_N])
    size_N = np.empty_like(by_image_N)
    size_N[by_image_N] = np.diff(first, append=len(image_ids_N))[group_N]
    return len(image_ids_N) // (3 * size_N)


def apart(image_ids_N: NDArray[np.int64], source: np.random.Philox) -> NDArray[np.int64]:
    """Return the order [N] that parts the pairs of one image that stand closer than `gaps`."""
    by_image_N = np.argsort(image_ids_N, kind="stable")  # places of each image, ascending
    same_N = np.diff(image_ids_N[by_image_N], prepend=image_ids_N[by_image_N[:1]] - 1) == 0
    distance_N = np.diff(by_image_N, prepend=0)
    gap_N = gaps(image_ids_N)
    close = by_image_N[same_N & (distance_N < gap_N[by_image_N])]
    return _swapped(image_ids_N, gap_N, np.sort(close), source, high=len(image_ids_N))


def apart_from_before(
    image_ids_N: NDArray[np.int64], before: NDArray[np.int64], source: np.random.Philox
) -> NDArray[np.int64]:
    """Return the order [N] that moves images of the end of `before` away from the start.

    The last third of N stays as it is.

    Args:
        before: the images that were shown just before, in their order.
    """
    count, third = len(image_ids_N), len(image_ids_N) // 3
    gap_N = np.minimum(gaps(image_ids_N), len(before) * gaps(image_ids_N) // count)
    tail = before[len(before) - len(before) // 3 :]
    last_seen = {int(image): len(tail) - 1 - place for place, image in enumerate(tail.tolist())}
    images, gap = image_ids_N[:third].tolist(), gap_N[:third].tolist()
    close = [
        place
        for place, image in enumerate(images)
        if image in last_seen and place + last_seen[image] + 1 < gap[place]
    ]
    close_N = np.array(close, dtype=np.int64)
    return _swapped(image_ids_N, gap_N, close_N, source, high=count - third, last_seen=last_seen)


def _groups(sorted_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each element the number of its run of equal ones, and where each run begins."""
    is_first_N = np.ones(len(sorted_N), dtype=bool)
    is_first_N[1:] = np.diff(sorted_N) != 0
    return np.cumsum(is_first_N) - 1, np.flatnonzero(is_first_N)


def _swapped(
    image_ids_N: NDArray[np.int64],
    gap_N: NDArray[np.int64],
    close: NDArray[np.int64],
    source: np.random.Philox,
    *,
    high: int,
    last_seen: dict[int, int] | None = None,
) -> NDArray[np.int64]:
    """Return the order [N] in which each pair of `close` has changed places with one of the first `high`.

    Both then keep the distance `gap_N` from others of their image, and at the start from where `last_seen`
    says that the image was shown before: 0 is just before the first place.
    """
    order, images, gap_N = np.arange(len(image_ids_N)), image_ids_N.copy(), gap_N.copy()
    seen = last_seen or {}

    def fits(pair: int, place: int) -> bool:
        image, gap = images[pair], int(gap_N[pair])
        if seen and place + seen.get(int(image), len(images)) + 1 < gap:
            return False
        others = images[max(0, place - gap + 1) : place + gap] == image
        # its own present place does not count
        near = place - gap < pair < place + gap
        return int(np.count_nonzero(others)) == int(near)

    for place in close.tolist():
        for draw in uniform(source, TRIES).tolist():
            other = int(draw * high)
            if images[other] != images[place] and fits(place, other) and fits(other, place):
                for array in (order, images, gap_N):
                    array[[place, other]] = array[[other, place]]
                break
    return order
