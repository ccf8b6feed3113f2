"""Who takes part in a run: rank, size and device, from the environment that a launcher sets."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from promptmeup.errors import ConfigError, TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all; in a world of one no exchange needs a process group."""

    rank: int
    """global: 0 .. size - 1 over all nodes; the only one that row offsets may use"""
    size: int
    local_rank: int
    """on this node; chooses the device and nothing else"""
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def say(world: World, *values: object) -> None:
    """Print on rank 0 only."""
    if world.is_main:
        print(*values, flush=True)


def warn(text: str) -> None:
    """Print a warning to standard error, on whatever rank; a full disk below it costs the warning and no run."""
    with suppress(OSError, ValueError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


def highest(value: float, world: World) -> float:
    """Return on every rank the largest `value` of all; every rank must call it."""
    if world.size == 1:
        return value
    found = torch.tensor(float(value), device=world.device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found.item())


def agree(flag: bool, world: World) -> bool:
    """Return on every rank whether `flag` is true on any; every rank must call it."""
    return bool(highest(flag, world))


def barrier(world: World) -> None:
    """Return when every rank has come here."""
    agree(False, world)


def broadcast_object(value: T, world: World) -> T:
    """Return rank 0's `value` (picklable) on every rank; every rank must call it."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=world.device)
    return values[0]


def gather_objects(value: T, world: World) -> list[T]:
    """Return every rank's `value` (picklable), in the order of ranks, on every rank; every rank must call it."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        given = "is not set" if value is None else f"= {value!r} is not a number"
        raise ConfigError(
            f"{name} {given}, though other variables of a launcher are there; start with torchrun, "
            "deepspeed or srun, which set all of them, or unset RANK to run alone"
        )
    return int(value)


def place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return rank, size and local rank: as torchrun and deepspeed say, else as srun says, else alone.

    Raises:
        ConfigError: the variables contradict each other, or the process runs inside a Slurm allocation
            of several tasks without srun.
    """
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_NUM_TASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        # A batch script has SLURM_PROCID = 0 as well, and waiting for tasks that nobody started would hang.
        tasks = environment.get("SLURM_NTASKS", "1")
        if "SLURM_PROCID" in environment and tasks != "1":
            raise ConfigError(
                f"SLURM_NTASKS = {tasks}, but srun did not start this process (no SLURM_STEP_NUM_TASKS); "
                "put srun before the command, or ask Slurm for one task"
            )
        return 0, 1, 0
    rank, size, local_rank = (_number(environment, name) for name in names)
    if rank >= size:
        raise ConfigError(f"{names[0]} = {rank} must be below {names[1]} = {size}; start the ranks again")
    return rank, size, local_rank


def announce(rank: int, size: int, local_rank: int) -> None:
    """Set RANK, WORLD_SIZE and LOCAL_RANK in the environment where they are missing: libraries read them there.

    They take LOCAL_RANK for the number of the GPU, which is 0 where a process sees one alone.
    """
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
        os.environ.setdefault(name, str(value))
    if torch.cuda.device_count() == 1:
        os.environ["LOCAL_RANK"] = "0"


def choose_device(local_rank: int, *, num_devices: int) -> torch.device:
    """Return the CPU where no GPU is visible, the only one where one is, else GPU number `local_rank`.

    Raises:
        ConfigError: more processes on this node than GPUs.
    """
    if num_devices == 0:
        return torch.device("cpu")
    if num_devices == 1:
        # Slurm may show every task its own GPU alone
        return torch.device("cuda", 0)
    if local_rank >= num_devices:
        raise ConfigError(
            f"process {local_rank} of this node (counted from 0) has no GPU: {num_devices} are visible; "
            "start at most one process for each"
        )
    return torch.device("cuda", local_rank)


def meeting_point(rank: int, size: int) -> tuple[str, str]:
    """Return host and port where the ranks meet.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT is missing.
    """
    names = ("MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"rank {rank} of {size}: {' and '.join(missing)} not set, so the ranks cannot meet; "
            "export the first node's name and a free port (under Slurm, slurm/env.sh does)"
        )
    return os.environ[names[0]], os.environ[names[1]]


def join(*, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Meet the other ranks (NCCL where GPUs are visible, else gloo) and return this process's place.

    Sets RANK, WORLD_SIZE and LOCAL_RANK in the environment where they are missing, since DeepSpeed reads
    them there. A process alone binds a port that the system picks, so that runs never collide.

    Args:
        timeout: how long to wait for the others, here and in every later exchange.

    Raises:
        ConfigError: see `place` and `choose_device`; or MASTER_ADDR or MASTER_PORT is missing.
        TrainingError: the others did not come.
    """
    rank, size, local_rank = place(os.environ)
    device = choose_device(local_rank, num_devices=torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    announce(rank, size, local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size == 1:
        store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True, timeout=timeout)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return World(rank, size, local_rank, device)
    host, port = meeting_point(rank, size)
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        raise TrainingError(
            f"rank {rank} of {size} could not meet the others at {host}:{port} within "
            f"{timeout.total_seconds():.0f} s: {error}; check that all {size} processes were started "
            "and that they reach this address"
        ) from error
    return World(rank, size, local_rank, device)


def gpu_names() -> list[str]:
    """Return the names of this node's GPUs, as far as this process sees them."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def share_cores(world: World) -> None:
    """Give this process its share of the node's cores, unless OMP_NUM_THREADS says otherwise.

    Without it every rank on a CPU starts as many threads as there are cores, and they fight: measured, two
    ranks on two cores lose more than half of their speed.
    """
    if world.device.type == "cpu" and world.size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_on_node(world)))


def ranks_on_node(world: World) -> int:
    """Return how many ranks this node has, as far as the launcher says; else all."""
    # torchrun says LOCAL_WORLD_SIZE, deepspeed LOCAL_SIZE, srun SLURM_NTASKS_PER_NODE
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
    given = [os.environ[name] for name in names if os.environ.get(name, "").isdecimal()]
    return int(given[0]) if given else world.size


def leave() -> None:
    """Leave the world, if this process joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()
