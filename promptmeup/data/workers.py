"""Worker processes that make batches, and how they start and end."""

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from promptmeup.errors import TrainingError, UserError

Item = TypeVar("Item")
Made = TypeVar("Made")


class _Task(Dataset[Any]):
    """A function in the shape that DataLoader wants."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, item: Any) -> Any:
        # A user's mistake is returned: DataLoader would wrap a raised one into a traceback as its message.
        try:
            return self._make(item)
        except UserError as error:
            return error


def _as_is(made: Made) -> Made:
    return made


def _prepare_worker(_: int) -> None:
    """Leave signals to the training process: it stops at a step boundary and then ends its workers.

    Slurm and Ctrl-C signal every process of a job; a worker that died of it would end the step before
    the checkpoint. Workers notice by themselves when their parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def run_workers(
    make: Callable[[Item], Made],
    items: Iterable[Item],
    *,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Iterator[Made]:
    """Yield ``make(item)`` in the order of `items`, made in `workers` processes.

    The workers end with the iterator: when it is exhausted, dropped, or the process leaves.

    Raises:
        UserError: the one that `make` raised, as it was raised.
        TrainingError: a worker was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        _Task(make),
        batch_size=None,  # an item is a whole batch already
        sampler=items,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        # said, because it is not everywhere the default: started workers import torch and open the corpus again
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
    )
    made = _iterate(loader)
    # A process that leaves ends its children with SIGTERM and waits for them; ours ignore it, so the
    # iterator has to be closed before. At an ordinary exit that is before torch's own exit handler, after
    # which loaders do nothing; in a child of multiprocessing, where there are no exit handlers, it is
    # before the finalizers of queues (priority 10).
    finalizer = Finalize(made, _close, args=(weakref.ref(made),), exitpriority=20)
    atexit.register(finalizer)
    return made


def _iterate(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    try:
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made
    except (RuntimeError, OSError, EOFError) as error:
        # where a batch of the dead worker was under way, its memory cannot be fetched any more: no RuntimeError;
        # an error that a living worker met begins with "Caught"
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        if str(error).startswith("Caught"):
            raise
        # it may have died with the lock of the common queue, for which the others wait, deaf to SIGTERM
        for worker in getattr(getattr(loader, "_iterator", None), "_workers", ()):
            worker.kill()
        raise TrainingError(
            f"a process that reads data died: {error}. Killed: the node's memory ran out, lower data.workers or "
            "data.prefetch. Bus error: /dev/shm is full, or a shard was cut short while it was read. Start the same "
            "command again to resume"
        ) from error
    finally:
        # The last reference ends the workers, now and not when a traceback that holds this frame is gone.
        del loader


def _close(reference: "weakref.ref[Generator[Any, None, None]]") -> None:
    made = reference()
    if made is not None:
        made.close()
