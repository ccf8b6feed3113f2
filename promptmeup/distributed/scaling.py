"""What ranks send each other in a step, and how long a step takes: a model of data parallelism, for GPUs not at hand.

One step of DeepSpeed (0.19) with its default settings, P parameters of w bytes each (4 in fp32, 2 in bf16):

    stage   all-reduce        all-gather                          reduce-scatter
    0       w P
    1, 2    w P               w P, one call a group of AdamW
    3                         w P, one call a small parameter     w P

Counted in real steps on real ranks, call by call (tests/distributed/test_scaling.py). What one would not expect: stages
1 and 2 all-reduce the gradients where a reduce-scatter would do, so a step sends 3/2 of what stage 0 sends; stage 3
keeps parameters of up to 100,000 numbers whole and gathers them anew after the update, one by one, so that a model
with many biases and norms pays for latency; only stage 3 has `overlap_comm`, so at stages 0 to 2 the reduction of the
gradients waits until the backward pass is over.

A call of S bytes (all that is summed, gathered or scattered) on n ranks takes the latency of its hops, and S (n-1)/n
over the bus bandwidth, twice that for an all-reduce: nccl-tests' definition of bus bandwidth, as in `bandwidth`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from promptmeup.distributed.memory import BUCKET, Stage

Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]
Under = Literal["forward", "backward"]

PERSISTENT = 100_000
"""numbers of a parameter up to which stage 3 keeps it whole (`stage3_param_persistence_threshold`)"""
PREFETCH = 50_000_000
"""numbers that stage 3 gathers in one call ahead of the forward pass (`stage3_prefetch_bucket_size`)"""


@dataclass(frozen=True)
class Collective:
    """Calls of one kind in a step."""

    what: str
    kind: Kind
    bytes: int
    """of all calls together: all that is summed, gathered or scattered, padding included"""
    calls: int = 1
    under: Under | None = None
    """the pass that some schedule could hide it under"""

    def sent(self, ranks: int) -> float:
        """Return the bytes that each rank sends, in a ring."""
        share = 2 if self.kind == "all-reduce" else 1
        return share * self.bytes * (ranks - 1) / ranks


def engine_collectives(
    groups: Sequence[Sequence[int]],
    *,
    stage: Stage,
    ranks: int,
    dtype: torch.dtype,
    backwards: int = 1,
) -> list[Collective]:
    """Return what DeepSpeed does in a step, gradient clipping included; nothing in a world of one.

    Of models below a billion parameters, from the third step on (stage 3 finds its order of parameters in the first
    two). The number of large gathers at stage 3 is exact for a model of one `PREFETCH`, a guess for larger ones.

    Args:
        groups: numbers of each parameter of each group of the optimizer.
        dtype: of parameters and gradients in the step.
        backwards: backward passes of a step; stage 0 reduces the gradients after each one.
    """
    if ranks == 1:
        return []
    width, sizes = dtype.itemsize, [size for group in groups for size in group]
    total = sum(sizes)
    if stage == 0:
        calls = backwards * math.ceil(total / BUCKET)
        return [Collective("gradients", "all-reduce", backwards * width * total, calls, under="backward")]
    if stage < 3:
        # each group is cut into equal parts, which begin at even numbers
        padded = [_round_up(sum(group), 2 * ranks) for group in groups if group]
        return [
            Collective("gradients", "all-reduce", width * total, math.ceil(total / BUCKET), under="backward"),
            # a norm and a flag of overflow, which in bf16 is looked for once more
            Collective("norm", "all-reduce", *((8, 2) if dtype is torch.float32 else (9, 3))),
            Collective("parameters", "all-gather", width * sum(padded), len(padded)),
        ]
    large = [_round_up(size, ranks) for size in sizes if size > PERSISTENT]
    small = [_round_up(size, ranks) for size in sizes if size <= PERSISTENT]
    found = [
        Collective("gradients", "reduce-scatter", width * sum(large + small), 1, under="backward"),
        Collective("norm", "all-reduce", 16, 2),
        Collective("small parameters", "all-gather", width * sum(small), len(small)),
    ]
    if large:
        calls = math.ceil(sum(large) / PREFETCH)
        found += [Collective("parameters", "all-gather", width * sum(large), calls, under="forward")]
    return found


def loss_collectives(*, gathered: int, summed: int, returned: int, ranks: int) -> list[Collective]:
    """Return the exchanges of the losses (`losses.cost.loss_exchange` has the bytes); none in a world of one.

    gloo scatters by an all-to-all, which sends as much as a reduce-scatter. The vectors travel under the fusion half
    as the step is today; the statistics are waited for.
    """
    found = [
        Collective("captions", "all-gather", gathered, under="forward"),
        Collective("statistics", "all-reduce", summed),
        Collective("captions' gradients", "reduce-scatter", returned, under="backward"),
    ]
    return [one for one in found if one.bytes > 0 and ranks > 1]


@dataclass(frozen=True)
class Link:
    """How one kind of collective goes between a number of ranks."""

    latency: float
    """seconds of a call of no size"""
    bandwidth: float
    """bus bandwidth, bytes a second"""

    def seconds(self, collective: Collective, ranks: int) -> float:
        return collective.calls * self.latency + collective.sent(ranks) / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs."""

    per_node: int
    intra_bandwidth: float
    """bus bandwidth within a node, bytes a second"""
    inter_bandwidth: float
    """of a node's network in each direction, all of its cards together, bytes a second"""
    intra_latency: float
    """seconds of a hop between two GPUs of a node"""
    inter_latency: float
    """seconds of a hop between two nodes"""

    def link(self, kind: Kind, ranks: int) -> Link:
        """Return how `kind` goes between `ranks` GPUs, packed into as few nodes as hold them.

        A ring enters and leaves each node once, so the slower of the two bandwidths carries it. Hops are counted as
        NCCL's own tuning model does (src/graph/tuning.cc): a tree for all-reduce, a ring for the others.
        """
        nodes = math.ceil(ranks / self.per_node)
        local = min(ranks, self.per_node)
        bandwidth = self.intra_bandwidth if nodes == 1 else min(self.intra_bandwidth, self.inter_bandwidth)
        if kind == "all-reduce":
            intra, inter = 2 * (local - 1), 2 * math.ceil(math.log2(nodes))
        else:
            intra, inter = ranks - nodes, nodes - 1
        return Link(intra * self.intra_latency + inter * self.inter_latency, bandwidth)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: two passes, and the collectives by what could hide them."""

    forward: float
    backward: float
    under_forward: float
    under_backward: float
    alone: float
    """nothing to hide it under: statistics, norms, what follows the update"""

    @property
    def compute(self) -> float:
        return self.forward + self.backward

    @property
    def exchange(self) -> float:
        """All collectives."""
        return self.under_forward + self.under_backward + self.alone

    @property
    def exposed(self) -> float:
        """The step in which nothing is hidden: the upper bound."""
        return self.compute + self.exchange

    @property
    def hidden(self) -> float:
        """The step in which all is hidden that some schedule could hide: the lower bound.

        No schedule reaches it: the last gradients are there only when the backward pass is over.
        """
        return max(self.forward, self.under_forward) + max(self.backward, self.under_backward) + self.alone


def step_time(
    collectives: Sequence[Collective],
    *,
    ranks: int,
    forward: float,
    backward: float,
    link: Callable[[Kind], Link],
) -> StepTime:
    """Return the step's time from the seconds of its passes on one rank and from how each kind of collective goes."""

    def seconds(under: Under | None) -> float:
        return sum(link(one.kind).seconds(one, ranks) for one in collectives if one.under == under)

    return StepTime(forward, backward, seconds("forward"), seconds("backward"), seconds(None))


@dataclass(frozen=True)
class Scaled:
    """A step on a number of ranks."""

    ranks: int
    rows: int
    """pairs of a rank"""
    time: StepTime
    ideal: float
    """seconds in which one rank that exchanges nothing would do the same share"""

    def pairs_per_second(self, seconds: float) -> float:
        return self.ranks * self.rows / seconds

    def efficiency(self, seconds: float) -> float:
        """Return pairs per second of a rank over those of one rank alone."""
        return self.ideal / seconds


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
