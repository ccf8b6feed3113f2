"""The arithmetic of the scaling model, by hand; its bytes are held against real steps in tests/distributed."""

import pytest
import torch

from promptmeup.distributed.memory import STAGES
from promptmeup.distributed.scaling import (
    Cluster,
    Collective,
    Link,
    Scaled,
    StepTime,
    engine_collectives,
    loss_collectives,
    step_time,
)

GROUPS = [[200_000, 7], [3]]
CLUSTER = Cluster(
    per_node=8, intra_bandwidth=300e9, inter_bandwidth=50e9, intra_latency=1e-6, inter_latency=5e-6
)


def test_what_a_rank_sends_at_each_stage() -> None:
    """With P parameters of 2 bytes and many ranks: 2 P twice, three times, and twice again."""
    total, sent = 200_010, []
    for stage in STAGES:
        found = engine_collectives(GROUPS, stage=stage, ranks=1024, dtype=torch.bfloat16)
        sent.append(sum(one.sent(1024) for one in found) / (2 * total))
    assert sent == pytest.approx([2, 3, 3, 2], rel=0.03)


def test_padding() -> None:
    at = {
        stage: {
            one.what: (one.bytes, one.calls)
            for one in engine_collectives(GROUPS, stage=stage, ranks=4, dtype=torch.float32)
        }
        for stage in STAGES
    }
    assert at[0] == {"gradients": (4 * 200_010, 1)}
    # groups of 200,007 and 3 numbers, to multiples of 8
    assert at[1]["parameters"] == at[2]["parameters"] == (4 * (200_008 + 8), 2)
    # parameters of 200,000, 7 and 3 numbers, to multiples of 4
    assert at[3]["gradients"] == (4 * (200_000 + 8 + 4), 1)
    assert at[3]["small parameters"] == (4 * (8 + 4), 2)
    assert at[3]["parameters"] == (4 * 200_000, 1)


def test_stage_0_reduces_after_every_backward_pass() -> None:
    once, thrice = (
        engine_collectives(GROUPS, stage=0, ranks=2, dtype=torch.bfloat16, backwards=n)[0] for n in (1, 3)
    )
    assert (thrice.bytes, thrice.calls) == (3 * once.bytes, 3 * once.calls)


def test_a_world_of_one_exchanges_nothing() -> None:
    assert engine_collectives(GROUPS, stage=1, ranks=1, dtype=torch.float32) == []
    assert loss_collectives(gathered=9, summed=9, returned=9, ranks=1) == []


def test_time_of_a_call() -> None:
    link = Link(latency=1e-3, bandwidth=1e6)
    assert link.seconds(Collective("", "all-reduce", 4000, calls=2), 4) == pytest.approx(2e-3 + 6e-3)
    assert link.seconds(Collective("", "all-gather", 4000), 4) == pytest.approx(1e-3 + 3e-3)


@pytest.mark.parametrize(
    ("kind", "ranks", "microseconds", "bandwidth"),
    [
        ("all-reduce", 2, 2, 300e9),
        ("all-reduce", 8, 14, 300e9),
        # a tree over 4 nodes: two levels, up and down
        ("all-reduce", 32, 14 + 20, 50e9),
        ("all-gather", 8, 7, 300e9),
        # a ring: 31 hops, three of them between nodes
        ("reduce-scatter", 32, 28 + 15, 50e9),
    ],
)
def test_hops(kind: str, ranks: int, microseconds: float, bandwidth: float) -> None:
    link = CLUSTER.link(kind, ranks)  # type: ignore[arg-type]
    assert link.latency == pytest.approx(microseconds * 1e-6)
    assert link.bandwidth == bandwidth


def test_bounds_of_a_step() -> None:
    collectives = [
        Collective("gradients", "all-reduce", 3000, under="backward"),
        Collective("captions", "all-gather", 2000, under="forward"),
        Collective("norm", "all-reduce", 100),
    ]
    # 3 s, 1 s and 0.1 s
    time = step_time(
        collectives, ranks=2, forward=2.0, backward=2.5, link=lambda kind: Link(0.0, bandwidth=1000.0)
    )
    assert time == StepTime(2.0, 2.5, pytest.approx(1.0), pytest.approx(3.0), pytest.approx(0.1))
    assert time.exposed == pytest.approx(4.5 + 4.1)
    # what does not fit under a pass is exposed
    assert time.hidden == pytest.approx(2.0 + 3.0 + 0.1)


def test_efficiency_is_against_a_rank_alone() -> None:
    scaled = Scaled(ranks=4, rows=10, time=StepTime(1, 2, 0, 0, 1), ideal=3.0)
    assert scaled.efficiency(scaled.time.exposed) == 0.75
    assert scaled.pairs_per_second(scaled.time.exposed) == 10.0
