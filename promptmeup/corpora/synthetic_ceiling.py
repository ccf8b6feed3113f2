"""How good retrieval can get on the synthetic world: the score of an oracle that sees exactly the facts.

A caption that tells only a part of the facts can be true of several images, and images with the same
facts cannot be told apart. The oracle knows which images each caption is true of and nothing else:

- text -> image: the n images that the caption is true of come first, in random order, so the right one is
  among the first k with probability min(1, k/n);
- image -> text: a caption true of n images was written for this one with probability 1/n, so true captions
  come by n, ascending, in random order among equals (hypergeometric).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Told:
    """A caption: the position of its image and the names that it mentions."""

    image: int
    names: frozenset[str]


def retrieval_ceiling(
    images: Sequence[frozenset[str]], captions: Sequence[Told], *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Return {"image_to_text" | "text_to_image": {"R@k": recall}}.

    `images` holds the names of everything that each image shows; every image has at least one caption.
    An image counts as found if any of its own captions is among the first k.
    """
    by_name: dict[str, set[int]] = {}
    for number, names in enumerate(images):
        for name in names:
            by_name.setdefault(name, set()).add(number)
    true_of = [set.intersection(*(by_name[name] for name in told.names)) for told in captions]
    # {image: {n: [captions true of n images, the image's own among them]}}
    levels: list[dict[int, list[int]]] = [{} for _ in images]
    for told, found in zip(captions, true_of, strict=True):
        for number in found:
            level = levels[number].setdefault(len(found), [0, 0])
            level[0] += 1
            level[1] += number == told.image
    return {
        "image_to_text": {f"R@{k}": sum(_any_found(level, k) for level in levels) / len(images) for k in ks},
        "text_to_image": {f"R@{k}": sum(min(1.0, k / len(n)) for n in true_of) / len(captions) for k in ks},
    }


def _any_found(level: dict[int, list[int]], k: int) -> float:
    """Return the probability that one of the image's own captions is among the first `k`."""
    missed, left = 1.0, k
    for _, (total, own) in sorted(level.items()):
        drawn = min(left, total)
        missed *= comb(total - own, drawn) / comb(total, drawn)
        left -= drawn
    return 1 - missed
