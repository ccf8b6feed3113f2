"""A process that fetches the shards that a rank will read next, before it reads them.

It is started anew (not forked, not by multiprocessing, which would run the main script again and with it
import torch) and only gives advice to the cache: what it does not fetch, the reader fetches itself.
"""

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import Empty, SimpleQueue

from promptmeup.data.staging import ShardCache

Shard = tuple[str, int, str]
"""Name, size in bytes, SHA-256 in hex."""

# Slurm and Ctrl-C signal every process of a job; the training process decides when this one ends. The
# signals come first: importing takes half a second.
_START = """
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
from promptmeup.data.stager import run
run(descriptor=int(sys.argv[1]), parent=int(sys.argv[2]))
"""
LOOK_AGAIN = 0.5  # seconds between looks at shards that others download, and at the parent


class Stager:
    """Fetches into `cache` in a process of its own, which ends with `close` or with this process."""

    def __init__(self, cache: ShardCache) -> None:
        self._owner = os.getpid()
        reader, self._writer = Pipe(duplex=False)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with reader:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(reader.fileno()), str(self._owner)],
                pass_fds=[reader.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            )
        self._send(cache)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stage(self, shards: Sequence[Shard]) -> None:
        """Fetch `shards` next, in this order, instead of what still waits of an earlier list.

        Those at the end that do not fit under the cache's limit beside the others are left out.
        """
        self._send(list(shards))

    def _send(self, message: ShardCache | list[Shard] | None) -> None:
        assert os.getpid() == self._owner, "a forked process writes into its parent's pipe"
        with suppress(OSError):  # the process is gone: the readers fetch for themselves
            self._writer.send(message)

    def close(self) -> None:
        """End the process at once, also in the middle of a transfer."""
        # A fork may have copied the pipe, so closing it is not enough. In the forked process: not its child.
        if os.getpid() != self._owner or self._writer.closed:
            return
        self._send(None)
        self._writer.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process"):  # not there when it could not be started
            self.close()


def run(*, descriptor: int, parent: int) -> None:
    """Body of the process: fetch what comes through the pipe `descriptor` while process `parent` lives."""
    inbox: SimpleQueue[list[Shard]] = SimpleQueue()
    connection = Connection(descriptor, writable=False)
    cache = connection.recv()
    threading.Thread(target=_listen, args=(connection, parent, inbox), daemon=True).start()
    _fetch_all(cache, inbox)


def _listen(connection: Connection, parent: int, inbox: "SimpleQueue[list[Shard]]") -> None:
    """Receive lists; leave the process when the parent is gone or says so."""
    try:
        while os.getppid() == parent:
            if connection.poll(LOOK_AGAIN):
                message = connection.recv()
                if message is None:
                    break
                inbox.put(message)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)  # a transfer may be under way: the cache bears a kill at any moment


def _fetch_all(cache: ShardCache, inbox: "SimpleQueue[list[Shard]]") -> None:
    waiting: deque[Shard] = deque()
    busy: deque[Shard] = deque()  # other processes download these now
    while True:
        try:
            # with nothing else to do, wait; else look whether a newer list is there
            newer = inbox.get_nowait() if waiting else inbox.get(timeout=LOOK_AGAIN if busy else None)
            waiting, busy = deque(_fitting(newer, cache.limit)), deque()
        except Empty:
            if not waiting:
                waiting, busy = busy, deque()
        if not waiting:
            continue
        name, size, sha256 = waiting.popleft()
        try:
            if cache.fetch(name, size=size, sha256=sha256, wait=False) is None:
                busy.append((name, size, sha256))
        except Exception:  # the reader that needs the shard meets the error, and stops the run with it
            continue


def _fitting(shards: list[Shard], limit: int | None) -> list[Shard]:
    """Return the first shards that fit under the limit together; more would evict the ones before."""
    if limit is None:
        return shards
    total, fitting = 0, []
    for shard in shards:
        total += shard[1]
        if total > limit:
            break
        fitting.append(shard)
    return fitting
