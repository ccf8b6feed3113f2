"""Run a function on real ranks: one process each, gloo, joined as a launcher would have them join."""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from promptmeup.distributed.world import World, join, leave


class RankError(AssertionError):
    """A rank failed, died or did not finish; the message has its number and its traceback."""


def _rank_main(
    pipe: Connection,
    environment: dict[str, str],
    stack_file: Path,
    timeout: float,
    function: Callable[..., Any],
    args: Any,
) -> None:
    """Life of one rank: join, run, send (True, result) or (False, traceback)."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with stack_file.open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack)
        # in case the parent is killed before it can kill this rank
        faulthandler.dump_traceback_later(timeout + 30, exit=True, file=stack)
        try:
            world = join(timeout=timedelta(seconds=timeout))
            # plain pickle: torch's own would pass tensors by file descriptors that die with this process
            answer: tuple[bool, bytes | str] = (True, pickle.dumps(function(world, *args)))
            leave()
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
        sys.stdout.flush()
        sys.stderr.flush()
        # skips the clean-up of a process group whose peers may be gone
        os._exit(0)


def _receive(pipe: Any, process: BaseProcess) -> tuple[bool, Any]:
    try:
        good, answer = pipe.recv()
    except EOFError:
        process.join(5)
        return False, f"died with exit code {process.exitcode}"
    return good, answer if good else f"failed:\n{answer}"


def _stacks(processes: dict[int, BaseProcess], folder: Path) -> str:
    """Return where each of the hanging ranks is."""
    for process in processes.values():
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.3)
    files = {rank: folder / f"{rank}.txt" for rank in processes}
    return "\n".join(f"rank {rank}: {file.read_text()}" for rank, file in files.items() if file.exists())


def run_ranks(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    timeout: float = 60,
    ranks_per_node: int | None = None,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """Return ``[function(world, *args) on rank 0, on rank 1, ...]``.

    `function` is a module-level function; it, `args` and the results are pickled. Ranks come from a
    clean server process that has only imported libraries, so threads of the test process cannot deadlock
    them; they start in some 0.1 s.

    Args:
        timeout: seconds for everything; ranks that are still running then are killed.
        ranks_per_node: pretend that every so many ranks are a node of their own: LOCAL_RANK starts again.
        environment: further variables of the ranks.

    Raises:
        RankError: the first failure, with its rank and traceback, or where each hanging rank is.
    """
    context = multiprocessing.get_context("forkserver")
    # imported once, in the server, instead of by every rank
    context.set_forkserver_preload(["promptmeup.distributed.world", "promptmeup.training.pretrain", "pytest"])
    # The parent holds the rendezvous at a port that the system picked, as torchrun's agent does.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(size),
    } | (environment or {})
    pipes: dict[Any, int] = {}
    processes: dict[int, BaseProcess] = {}
    answers: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            for rank in range(size):
                local = {"RANK": str(rank), "LOCAL_RANK": str(rank % (ranks_per_node or size))}
                ours, theirs = context.Pipe(duplex=False)
                pipes[ours] = rank
                processes[rank] = context.Process(
                    target=_rank_main,
                    args=(theirs, common | local, folder / f"{rank}.txt", timeout, function, args),
                )
                processes[rank].start()
                theirs.close()
            # counted from here: the first start of all waits for the server's imports
            deadline = time.monotonic() + timeout
            while pipes:
                ready = wait(list(pipes), timeout=max(deadline - time.monotonic(), 0))
                if not ready:
                    hanging = sorted(pipes.values())
                    stacks = _stacks({rank: processes[rank] for rank in hanging}, folder)
                    raise RankError(f"ranks {hanging} of {size} did not finish in {timeout} s\n{stacks}")
                failures = []
                for pipe in ready:
                    rank = pipes.pop(pipe)
                    good, answer = _receive(pipe, processes[rank])
                    if good:
                        answers[rank] = pickle.loads(answer)
                    else:
                        failures.append(f"rank {rank} of {size} {answer}")
                if failures:
                    raise RankError("\n".join(failures))
        finally:
            for process in processes.values():
                if len(answers) < size:
                    process.kill()
                process.join()
    return [answers[rank] for rank in range(size)]


def one_world() -> World:
    """Return the place of a process that is alone, on the CPU."""
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
