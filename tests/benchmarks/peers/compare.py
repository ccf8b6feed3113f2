"""What is made of the keys that the ranks of several runs have read: pure functions."""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from tests.benchmarks.peers.peer import Keys

GlobalBatch = tuple[str, ...]
"""sorted keys of the batches that all ranks have read at the same step"""


def global_batches(ranks: Sequence[Sequence[Keys]]) -> list[GlobalBatch]:
    """Return the global batch of every step; a rank that has come to its end adds nothing."""
    return [tuple(sorted(key for keys in step for key in keys)) for step in zip_longest(*ranks, fillvalue=[])]


def equal_batches(*runs: Sequence[GlobalBatch]) -> tuple[int, int]:
    """Return at how many steps all runs have the same global batch, and the steps of the longest run."""
    steps = list(zip_longest(*runs))
    return sum(len(set(step)) == 1 for step in steps), len(steps)


def missing_and_repeated(expected: Sequence[GlobalBatch], got: Sequence[GlobalBatch]) -> tuple[int, int]:
    """Return how many samples of `expected` are not in `got`, and how many of `got` are too many."""
    want, have = (Counter(key for batch in batches for key in batch) for batches in (expected, got))
    return (want - have).total(), (have - want).total()


def serialized(state: Any) -> bytes:
    """Return a state as a file would hold it: JSON where it can be, else a pickle."""
    try:
        return json.dumps(state, sort_keys=True).encode()
    except TypeError:
        return pickle.dumps(state)


def state_cell(states: Sequence[Any]) -> str:
    """Return how many files the states of all ranks need, and their size: equal ones are saved once."""
    files = {serialized(state) for state in states if state is not None}
    if not files:
        return "no state"
    return f"{len(files)} file{'s' * (len(files) > 1)}, {sum(map(len, files))} bytes"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned for reading as text, too."""
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
