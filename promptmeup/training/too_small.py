"""What to do where a disk or a GPU is too small, in the place of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from promptmeup.errors import TrainingError, UserError


@contextmanager
def writing(folder: Path, *, error: type[UserError], stays: str) -> Iterator[None]:
    """Turn trouble with files below `folder` into an `error` that says what `stays`."""
    try:
        yield
    except OSError as problem:
        raise error(
            f"cannot read or write {problem.filename or folder}: {problem.strerror or problem}; make room or mend the "
            f"permissions, and start the same command again: {stays}"
        ) from problem


@contextmanager
def memory_for(pairs: int) -> Iterator[None]:
    """Say what to do where a GPU's memory is too small for a step of `pairs` at once."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        smaller = f"with micro_batch={pairs // 2}, the same step in more parts, or " if pairs > 1 else ""
        raise TrainingError(
            f"a step of {pairs} pairs at once does not fit the GPU ({str(problem).split('. ')[0]}): start the same "
            f"command again {smaller}on more GPUs, or with engine.activation_checkpointing=full; --dry-run shows what "
            "each of them needs"
        ) from problem
