"""Weak and strong scaling of the real training step on CPU ranks, and the scaling model against its collectives.

A small model, random batches, ZeRO 1, fp32, gloo, one thread a rank. Worlds of 1, 2 and 4 ranks take turns, and in each
of them the two kinds of step. A world of more ranks than cores is oversubscribed: its ranks share them, so that cores
by ranks is all the efficiency it could reach.

The model is asked for what it has not seen: latency and bus bandwidth come from calls of other sizes, in turns with the
collectives of a real step, which were recorded and are made again without the step.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from promptmeup.distributed.memory import STAGES, Stage
from promptmeup.distributed.scaling import Collective, Link
from promptmeup.distributed.world import World
from promptmeup.models.alignment import ModelConfig
from tests.benchmarks import harness
from tests.support.collectives import KINDS, Call, Recorder
from tests.support.ranks import run_ranks
from tests.support.tiny_alignment import TINY

WORLDS = (1, 2, 4)
ROUNDS, STEPS = 3, 5
ROWS = 64
"""pairs of a rank in weak scaling"""
BATCH = 128
"""pairs of all ranks in strong scaling"""
STAGE: Stage = 1
"""of the steps that are timed"""
SMALL, LARGE = 1 << 10, 16 << 20
"""bytes of the calls that give latency and bandwidth; the large ones of a step have 4 million. gloo is faster with a
megabyte, which stays in the caches: from calls of that size the model says half of what is measured"""
CALLS, IN_A_ROW = 10, 100
"""times that each is measured; small calls that are timed together, since ranks do not begin the first at one time"""

MODEL = ModelConfig.model_validate(
    TINY.model_dump()
    | {"text": TINY.text.model_dump() | {"layers": 4}}
    | {"vision": TINY.vision.model_dump() | {"image_size": 64, "patch": 8, "hidden": 48, "layers": 3}}
)


Times = dict[tuple[str, int], list[float]]
"""(kind of scaling, ranks) -> seconds of steps"""


def make_call(kind: str, size: int, ranks: int) -> Callable[[], object]:
    """Return a collective of `size` bytes: all that is summed, gathered or scattered."""
    numbers = max(1, size // 4 // ranks)
    whole, own, other = torch.zeros(numbers * ranks), torch.zeros(numbers), torch.zeros(numbers * ranks)
    makers: dict[str, Callable[[], object]] = {
        "all-reduce": lambda: dist.all_reduce(whole),
        "all-gather": lambda: dist.all_gather_into_tensor(whole, own),
        "reduce-scatter": lambda: dist.reduce_scatter_tensor(own, whole),
        "all-to-all": lambda: dist.all_to_all_single(other, whole),
    }
    return makers[kind]


def link_of(kind: str, small: float, large: float, *, ranks: int) -> Link:
    """Return how a kind of collective goes, from the seconds of a small and of a large call."""
    same = Collective("", "all-reduce" if kind == "all-reduce" else "all-gather", LARGE - SMALL)
    return Link(small, same.sent(ranks) / max(large - small, 1e-9))


def modelled_seconds(collectives: Sequence[Collective], links: dict[str, Link], *, ranks: int) -> float:
    """Return what the model says of collectives one after the other."""

    def kind(one: Collective) -> str:
        # what the losses scatter on gloo goes another way, see `WorldExchange`
        return "all-to-all" if one.what == "captions' gradients" else one.kind

    return sum(links[kind(one)].seconds(one, ranks) for one in collectives)


def on_rank(world: World, stages: Sequence[Stage]) -> dict[str, Any]:
    """Return seconds of both kinds of step at STAGE, and modelled and measured seconds of collectives at `stages`."""
    from tests.support.training_steps import trainer

    trained = trainer(world, MODEL, stage=STAGE, rows=ROWS)
    steps = {"weak": trained.step(ROWS), "strong": trained.step(BATCH // world.size)}
    cpu: dict[str, list[float]] = {kind: [] for kind in steps}
    timed = {kind: partial(_together, step, world, cpu[kind]) for kind, step in steps.items()}
    seconds = harness.interleave(timed, repeats=STEPS, warmups=1)
    return {
        "seconds": seconds,
        "cpu": {kind: values[1:] for kind, values in cpu.items()},
        "collectives": compare(world, stages) if stages else {},
    }


def _together(step: Callable[[], object], world: World, cpu: list[float]) -> None:
    began = time.process_time()
    step()
    if world.size > 1:
        dist.barrier()
    cpu.append(time.process_time() - began)


def compare(world: World, stages: Sequence[Stage]) -> dict[Stage, tuple[float, float]]:
    """Return modelled and measured seconds of the collectives of one step at each stage."""
    modelled, runs = {}, {}
    for stage in stages:
        calls, modelled[stage] = record(world, stage)
        made = [make_call(call.kind, call.bytes, world.size) for call in calls]
        runs[f"{stage}"] = partial(_all, made)
    for kind in KINDS.values():
        runs[f"{kind} small"] = partial(_all, [make_call(kind, SMALL, world.size)] * IN_A_ROW)
        runs[f"{kind} large"] = partial(_all, [make_call(kind, LARGE, world.size)])
    found = harness.interleave(runs, repeats=CALLS, warmups=2)
    medians = {name: harness.spread(values).median for name, values in found.items()}
    links = {
        kind: link_of(kind, medians[f"{kind} small"] / IN_A_ROW, medians[f"{kind} large"], ranks=world.size)
        for kind in KINDS.values()
    }
    return {
        stage: (modelled_seconds(modelled[stage], links, ranks=world.size), medians[f"{stage}"])
        for stage in stages
    }


def record(world: World, stage: Stage) -> tuple[list[Call], list[Collective]]:
    """Return the collectives that a step makes, and those that the model says it makes."""
    from tests.support.training_steps import trainer

    trained = trainer(world, MODEL, stage=stage, rows=ROWS)
    step = trained.step(ROWS)
    for _ in range(2 if stage == 3 else 0):  # until it knows the order of its parameters
        step()
    with Recorder() as recorder:
        step()
    return recorder.calls, trained.modelled(ROWS, stage=stage)


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def scaling_rows(seconds: Times, cpu: Times, *, cores: int) -> tuple[list[harness.Row], dict[str, float]]:
    """Return a row for each kind and world, and efficiencies: pairs/s of a rank over those of one rank alone.

    By the clock, and by the CPU time of a rank with all its threads: where other jobs have the cores, ranks wait for
    them and spend none. Work for the exchanges is in it, waiting for each other is not.
    """
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    rates: dict[tuple[str, int], float] = {}
    cost: dict[tuple[str, int], float] = {}
    for (kind, size), values in seconds.items():
        pairs, times = ROWS * size if kind == "weak" else BATCH, harness.spread(values)
        rates[kind, size] = pairs / times.median
        efficiency = rates[kind, size] / rates[kind, 1] / size
        each = pairs // size
        cost[kind, size] = harness.spread(cpu[kind, size]).median / each
        rows.append(
            {
                "scaling": kind,
                "ranks": size,
                "cores": "oversubscribed" if size > cores else "one a rank",
                "pairs a rank": each,
                "pairs/s": rates[kind, size],
                "p25": pairs / times.p75,
                "p75": pairs / times.p25,
                "efficiency": efficiency,
                "CPU ms a pair": 1e3 * cost[kind, size],
                "by CPU time": cost[kind, 1] / cost[kind, size],
            }
        )
        if size > 1:
            summary[f"{kind}_{size}"] = efficiency
            summary[f"{kind}_cpu_{size}"] = cost[kind, 1] / cost[kind, size]
    return rows, summary


def model_rows(
    times: dict[tuple[int, Stage], list[tuple[float, float]]],
) -> tuple[list[harness.Row], dict[str, float]]:
    """Return a row for each world and ZeRO stage, and the ratio where a rank has a core: medians over the rounds."""
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    for (size, stage), pairs in sorted(times.items()):
        modelled, measured = (float(np.median(values)) for values in zip(*pairs, strict=True))
        ratio = float(np.median([model / real for model, real in pairs]))
        rows.append(
            {
                "ranks": size,
                "ZeRO": stage,
                "collectives, modelled ms": 1e3 * modelled,
                "measured ms": 1e3 * measured,
                "modelled / measured": ratio,
            }
        )
        if (size, stage) == (2, STAGE):
            summary["model_vs_measured"] = ratio
    return rows, summary


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Weak and strong scaling at 1, 2 and 4 ranks; the model against the step's collectives at each ZeRO stage."""
    seconds: Times = {(kind, size): [] for kind in ("weak", "strong") for size in WORLDS}
    cpu: Times = {place: [] for place in seconds}
    times: dict[tuple[int, Stage], list[tuple[float, float]]] = defaultdict(list)
    for turn in range(ROUNDS):
        first = turn % len(WORLDS)
        for size in WORLDS[first:] + WORLDS[:first]:
            stages = () if size == 1 else STAGES if turn == 0 else (STAGE,)
            found = run_ranks(on_rank, size, stages, timeout=240)[0]
            for kind, values in found["seconds"].items():
                seconds[kind, size] += values
                cpu[kind, size] += found["cpu"][kind]
            for stage, pair in found["collectives"].items():
                times[size, stage].append(pair)
    rows, summary = scaling_rows(seconds, cpu, cores=len(os.sched_getaffinity(0)))
    more, of_model = model_rows(times)
    return rows + more, summary | of_model


if __name__ == "__main__":
    harness.run("scaling", measure)
