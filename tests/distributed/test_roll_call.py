"""Who came, who did not, and what the exchanges measure: the store and the collectives that a check-up uses."""

import socket
import time

import pytest
import torch

from promptmeup.distributed import bandwidth
from promptmeup.distributed.bandwidth import Measured, measure_exchanges
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.roll_call import RollCall, alone, call_roll
from promptmeup.distributed.world import World, barrier, leave
from promptmeup.errors import ConfigError, TrainingError
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")


def _part(world: World) -> None:
    """Leave the group that the helper joined, when all are in it."""
    barrier(world)
    leave()


def _call(world: World, timeout: float = 30.0) -> RollCall:
    _part(world)
    return call_roll(
        world.rank, world.size, timeout=timeout, notice={"said": "by 0"} if world.is_main else {}
    )


def _everyone(world: World) -> tuple[list[int], dict[int, str], dict[str, str], dict[int, object], bool]:
    call = _call(world)
    call.hand_in({"rank": world.rank})
    found = call.collect(20) if world.is_main else {}
    return call.missing, call.hosts, call.notice, found, abs(call.clock_offset) < 5


def test_everyone_comes_and_hands_in() -> None:
    first, second, third = run_ranks(_everyone, 3)
    assert first[0] == [] and list(first[1]) == [0, 1, 2]
    assert first[1] == second[1] == third[1]
    assert second[2] == third[2] == {"said": "by 0"}
    assert first[3] == {rank: {"rank": rank} for rank in range(3)}
    assert first[4] and second[4] and third[4]


def _without_one(world: World) -> list[int] | None:
    if world.rank == 1:
        _part(world)
        return None
    call = _call(world, timeout=4.0)
    return call.missing


def test_a_missing_rank_is_named_on_all_others() -> None:
    assert run_ranks(_without_one, 3) == [[1], None, [1]]


def _late(world: World) -> list[int] | str:
    _part(world)
    if world.rank == 1:
        time.sleep(1.5)
    try:
        return call_roll(world.rank, world.size, timeout=0.5 if world.is_main else 20, notice={}).missing
    except TrainingError as error:
        return str(error)


def test_a_late_rank_is_told_so() -> None:
    first, second = run_ranks(_late, 2)
    assert first == [1]
    assert isinstance(second, str) and "came to 127.0.0.1" in second and "--timeout" in second


def _silent(world: World) -> dict[int, object]:
    call = _call(world)
    if world.rank == 1:
        return {}
    call.hand_in("x")
    return call.collect(0.5)


def test_a_rank_that_hands_nothing_in_is_not_waited_for() -> None:
    assert run_ranks(_silent, 2)[0] == {0: "x"}


def test_alone_needs_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    call = call_roll(0, 1, timeout=1, notice={"probe": "x"})
    assert not call.missing and call.notice == {"probe": "x"} and call.address == ""
    call.hand_in(3)
    assert call.collect(1) == {0: 3}
    assert alone(2, 4).missing == [0, 1, 3]
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.* not set, so the ranks cannot meet; export"):
        call_roll(1, 4, timeout=1, notice={})
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "any")
    with pytest.raises(ConfigError, match="MASTER_PORT = 'any' is not a number; export a free port"):
        call_roll(1, 4, timeout=1, notice={})


def test_an_address_that_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as freed:
        freed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(freed.getsockname()[1]))
    with pytest.raises(
        TrainingError, match=r"rank 1 of 2 on .* cannot connect at 127.0.0.1:\d+: .*was rank 0 started"
    ):
        call_roll(1, 2, timeout=1, notice={})


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(TrainingError, match=r"rank 0 of 2 on .* cannot listen .*another MASTER_PORT"):
            call_roll(0, 2, timeout=2, notice={})


def _measure(world: World) -> tuple[list[Measured], str]:
    call = _call(world)
    return measure_exchanges(call.store, rank=world.rank, size=world.size, device=CPU, timeout=30)


@pytest.mark.parametrize("size", [2, 3])
def test_the_exchanges_of_a_step_are_measured(size: int) -> None:
    for found, problem in run_ranks(_measure, size):
        assert problem == ""
        assert [one.name for one in found] == ["all-gather", "all-to-all", "all-reduce"]
        assert all(one.is_right and one.gigabytes > 0 and one.microseconds > 0 for one in found)


def _wrong_sum(world: World) -> tuple[list[Measured], str]:
    if world.rank == 1:
        right = WorldExchange.sum
        WorldExchange.sum = lambda self, values: right(self, values) + 1  # type: ignore[method-assign]
    return _measure(world)


def test_wrong_numbers_are_noticed() -> None:
    results = run_ranks(_wrong_sum, 2)
    assert [one.is_right for one in results[0][0]] == [True, True, True]
    assert [one.is_right for one in results[1][0]] == [True, True, False]


def _hang(world: World) -> tuple[list[str], str]:
    call = _call(world)
    if world.rank == 1:
        time.sleep(3)
        return [], ""
    found, problem = measure_exchanges(call.store, rank=0, size=2, device=CPU, timeout=1.5)
    return [one.name for one in found], problem


def test_a_peer_that_hangs_is_not_waited_for() -> None:
    assert run_ranks(_hang, 2)[0] == ([], "joining did not end within 1.5 s")


def test_bus_bandwidth_by_nccl_tests_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 MiB in a second on 4 ranks: 3/4 of them crossed each link in a gather, 6/4 in an all-reduce."""
    clock = iter(range(100))
    monkeypatch.setattr(
        bandwidth.time, "perf_counter", lambda: next(clock) * 5
    )  # five repetitions of a second
    monkeypatch.setattr(bandwidth, "REPEAT", {"small": 5, "large": 5})

    def measured(share: int) -> float:
        expected = {}

        def make(total: int, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
            expected[total] = torch.ones(1)
            return expected[total], expected[total]

        return bandwidth._measure(
            "x", lambda rows: rows, make, share=share, rank=0, size=4, device=CPU
        ).gigabytes

    size = bandwidth.LARGE["cpu"] / 1e9
    assert measured(1) == pytest.approx(size * 3 / 4)
    assert measured(2) == pytest.approx(size * 6 / 4)
