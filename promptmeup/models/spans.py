"""Captions of about the same length together, so that little of what the text layers work on is padding."""

from collections.abc import Sequence

MOST, MIN_ROWS = 8, 16
"""groups of a batch, and rows of a group: more and smaller ones save less padding than they cost in calls"""
MULTIPLE = 8
"""lengths are rounded up to one of these, so that a run meets few shapes"""

Span = tuple[int, int]
"""(rows, tokens) of a group of neighbouring rows"""


def spans(lengths: Sequence[int] | None, *, rows: int, longest: int) -> list[Span]:
    """Return groups of equally many rows, up to one, that cover the captions in their order; without lengths, one.

    Their number depends on the number of captions alone: under ZeRO-3 the ranks exchange parameters whenever a layer
    is called, so each must call it equally often.

    Args:
        lengths: real tokens of each caption, ascending; None: not known.
        rows: number of captions.
        longest: what the captions are padded to, at least the largest of `lengths`.
    """
    if lengths is None:
        return [(rows, longest)]
    groups = max(1, min(MOST, rows // MIN_ROWS))
    stops = [rows * (number + 1) // groups for number in range(groups)]
    starts = [0, *stops[:-1]]
    return [
        (stop - start, min(longest, -(-lengths[stop - 1] // MULTIPLE) * MULTIPLE))
        for start, stop in zip(starts, stops, strict=True)
    ]
