"""The helper that starts real ranks: a test of ranks is worth something only if it can fail."""

import os
import time

import pytest
import torch

from promptmeup.distributed.world import World
from tests.support.ranks import RankError, run_ranks


def _place(world: World, note: str) -> tuple[int, int, int, str, torch.Tensor]:
    return world.rank, world.size, world.local_rank, note, torch.full((2,), world.rank)


def test_results_come_in_the_order_of_ranks() -> None:
    results = run_ranks(_place, 3, "hello", ranks_per_node=2)
    assert [r[:4] for r in results] == [(0, 3, 0, "hello"), (1, 3, 1, "hello"), (2, 3, 0, "hello")]
    assert [r[4].tolist() for r in results] == [[0, 0], [1, 1], [2, 2]]


def _fail_on_one(world: World) -> None:
    if world.rank == 1:
        raise ValueError("broken on purpose")
    time.sleep(60)


def test_failure_names_its_rank_and_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2 failed.*_fail_on_one.*broken on purpose"):
        run_ranks(_fail_on_one, 2)
    assert time.monotonic() - start < 30


def _die(world: World) -> None:
    if world.rank == 1:
        os._exit(7)
    time.sleep(60)


def test_death_names_rank_and_exit_code() -> None:
    with pytest.raises(RankError, match="rank 1 of 2 died with exit code 7"):
        run_ranks(_die, 2)


def _hang(world: World) -> None:
    if world.rank == 1:
        time.sleep(60)


def test_hanging_rank_is_killed_and_says_where_it_hangs() -> None:
    with pytest.raises(RankError, match=r"(?s)ranks \[1\] of 2 did not finish in 5 s.*in _hang"):
        run_ranks(_hang, 2, timeout=5)
