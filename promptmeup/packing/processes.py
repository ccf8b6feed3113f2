"""The same function on many items, in worker processes that end with this one, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinels
from typing import Any, TypeVar

from promptmeup.errors import ShardError

Item = TypeVar("Item")
Made = TypeVar("Made")
Count = Callable[[int], None]
"""Called by the function with the number of units that it has done since the last call."""

_counter: Any = None  # in a worker: shared with the parent


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_processes(
    make: Callable[[Item, Count], Made],
    items: Sequence[Item],
    *,
    processes: int,
    count: Count,
    poll_seconds: float = 0.5,
) -> Iterator[Made]:
    """Yield ``make(item, count)`` of each item, as they are done, in whatever order.

    With one process, or one item, the work is done here. `make` must be picklable, and should lower torch's
    threads itself: the processes share the cores.

    Raises:
        ShardError: a process was killed. Whatever `make` raises is raised here, after the items that are
            being made are done.
    """
    if min(processes, len(items)) <= 1:
        for item in items:
            yield make(item, count)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    counter = context.Value("q", 0)
    counted = 0
    pool = ProcessPoolExecutor(
        min(processes, len(items)), mp_context=context, initializer=_begin_worker, initargs=(counter,)
    )
    try:
        waiting: set[Future[Made]] = {pool.submit(_make, make, item) for item in items}
        while waiting:
            done, waiting = wait(waiting, timeout=poll_seconds, return_when=FIRST_COMPLETED)
            now = counter.value
            count(now - counted)
            counted = now
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            "a packing process was killed, perhaps because memory ran out (see dmesg); run the same command "
            "again, with fewer processes=N: it goes on where it stopped"
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        for child in multiprocessing.active_children():
            child.kill()  # the shard in work is made again; waiting for it would take a minute
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which kills its children
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_sentinels([parent.sentinel])
    os._exit(1)


def _make(make: Callable[[Item, Count], Made], item: Item) -> Made:
    return make(item, _count)


def _count(units: int) -> None:
    with _counter.get_lock():
        _counter.value += units
