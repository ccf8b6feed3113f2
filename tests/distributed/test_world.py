"""Who is who: places from the environment, devices, joining, agreeing."""

import contextlib
import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from promptmeup.distributed.world import (
    World,
    agree,
    announce,
    barrier,
    broadcast_object,
    choose_device,
    join,
    leave,
    place,
    say,
    warn,
)
from promptmeup.errors import ConfigError, TrainingError
from tests.support.ranks import run_ranks

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (5, 8, 1)),
        (SRUN, (3, 4, 1)),
        # the launcher that started this very process knows best
        (SRUN | TORCHRUN, (5, 8, 1)),
        # a batch script of one task, and a shell inside an allocation
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, (0, 1, 0)),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, (0, 1, 0)),
    ],
)
def test_place(environment: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is not set.*torchrun"),
        (TORCHRUN | {"LOCAL_RANK": ""}, "LOCAL_RANK = '' is not a number"),
        (TORCHRUN | {"RANK": "8"}, "RANK = 8 must be below WORLD_SIZE = 8"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, "SLURM_NTASKS = 4.*srun before"),
    ],
)
def test_contradicting_environment_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place(environment)


def test_device_follows_local_rank() -> None:
    assert choose_device(3, num_devices=0) == torch.device("cpu")
    assert choose_device(3, num_devices=8) == torch.device("cuda", 3)
    assert choose_device(3, num_devices=1) == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"process 2 of this node .*: 2 are visible"):
        choose_device(2, num_devices=2)


def _forget_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"):
        # set first, so that what `join` exports is undone as well
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_only_gpu_of_a_process_is_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun --gpus-per-task=1 shows them; DeepSpeed and accelerate take LOCAL_RANK for the GPU's number."""
    for seen, expected in ((0, "3"), (1, "0"), (8, "3")):
        for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        announce(3, 8, 3)
        assert os.environ["LOCAL_RANK"] == expected


def test_join_alone_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_launcher(monkeypatch)
    for _ in range(2):
        world = join()
        try:
            assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
            assert dist.get_world_size() == 1
            # DeepSpeed refuses to start without it
            assert os.environ["LOCAL_RANK"] == "0"
        finally:
            leave()
    assert not dist.is_initialized()
    leave()


def test_ranks_without_an_address_are_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_launcher(monkeypatch)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="rank 0 of 2: MASTER_ADDR and MASTER_PORT not set"):
        join()


def test_ranks_that_do_not_come_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_launcher(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=rf"rank 0 of 2 could not meet .*127.0.0.1:{port} within 1 s"):
        join(timeout=timedelta(seconds=1))


def _talk(world: World) -> tuple[bool, bool, object, int]:
    barrier(world)
    return (
        agree(world.rank == 2, world),
        agree(False, world),
        broadcast_object({"from": world.rank}, world),
        dist.get_rank(),
    )


def test_ranks_agree_and_hear_rank_0() -> None:
    results = run_ranks(_talk, 3, ranks_per_node=2)
    assert results == [(True, False, {"from": 0}, rank) for rank in range(3)]


def _slurm_place(world: World) -> tuple[World, dict[str, str]]:
    exported = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return world, exported


def test_join_exports_its_place() -> None:
    for rank, (world, exported) in enumerate(run_ranks(_slurm_place, 2)):
        assert world == World(rank, 2, rank, torch.device("cpu"))
        assert exported == {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


def test_alone_nothing_is_exchanged_and_only_rank_0_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    alone = World(0, 1, 0, torch.device("cpu"))
    assert agree(True, alone)
    assert not agree(False, alone)
    assert broadcast_object("x", alone) == "x"
    say(alone, "hello", 3)
    say(World(1, 2, 1, torch.device("cpu")), "silence")
    assert capsys.readouterr().out == "hello 3\n"


def test_a_warning_that_cannot_be_printed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        warn("the disk of the log is full")
        with contextlib.suppress(OSError):
            full.close()
    warn("and closed")
