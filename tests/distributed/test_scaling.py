"""The model of a step's collectives against those of real steps: every call, every byte, at every ZeRO stage."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch.distributed as dist

from promptmeup.distributed.memory import STAGES
from promptmeup.distributed.scaling import Collective
from promptmeup.distributed.world import World
from tests.benchmarks.scaling import make_call
from tests.support.collectives import KINDS, Call, Recorder
from tests.support.ranks import run_ranks
from tests.support.tiny_alignment import TINY

ROWS = 4
Case = tuple[int, str, int | None]
"""(stage, precision, micro_batch)"""
CASES: dict[int, tuple[Case, ...]] = {
    2: (
        *((stage, "fp32", None) for stage in STAGES),
        *((stage, "bf16", None) for stage in (0, 1, 3)),
        (0, "fp32", 2),
    ),
    # another padding
    4: tuple((stage, "fp32", None) for stage in STAGES),
}


def _steps(world: World) -> dict[Case, tuple[list[Call], list[Collective]]]:
    """All cases in one process of a rank: importing DeepSpeed is what takes long."""
    from tests.support.training_steps import trainer

    found: dict[Case, Any] = {}
    for stage, precision, micro_batch in CASES[world.size]:
        trained = trainer(world, TINY, stage=stage, precision=precision, rows=ROWS)  # type: ignore[arg-type]
        step = trained.step(ROWS, micro_batch=micro_batch)
        for _ in range(2 if stage == 3 else 0):
            step()
        with Recorder() as recorder:
            step()
        backwards = ROWS // (micro_batch or ROWS)
        modelled = trained.modelled(ROWS, stage=stage, backwards=backwards)  # type: ignore[arg-type]
        found[stage, precision, micro_batch] = recorder.calls, modelled
    return found


@cache
def _answers(ranks: int) -> list[dict[Case, tuple[list[Call], list[Collective]]]]:
    return run_ranks(_steps, ranks, timeout=240)


@pytest.mark.parametrize(
    ("ranks", "case"),
    [(ranks, case) for ranks, cases in CASES.items() for case in cases],
    ids=lambda value: str(value),
)
def test_every_call_and_byte_is_in_the_model(ranks: int, case: Case) -> None:
    """Exactly: the padding to equal parts is in the model too."""
    for answer in _answers(ranks):
        calls, modelled = answer[case]
        num_calls, num_bytes = Counter[str](), Counter[str]()
        for call in calls:
            # what the losses scatter on gloo, see `WorldExchange`
            kind = "reduce-scatter" if call.kind == "all-to-all" else call.kind
            num_calls[kind] += 1
            num_bytes[kind] += call.bytes
        expected_calls, expected_bytes = Counter[str](), Counter[str]()
        for one in modelled:
            expected_calls[one.kind] += one.calls
            expected_bytes[one.kind] += one.bytes
        assert num_calls == expected_calls
        assert num_bytes == expected_bytes


def _calls(world: World) -> list[Call]:
    with Recorder() as recorder:
        for kind in KINDS.values():
            make_call(kind, 4096, world.size)()
        dist.barrier()
    return recorder.calls


def test_the_benchmark_makes_the_calls_it_says() -> None:
    expected = [Call(kind, 4096) for kind in KINDS.values()]
    for calls in run_ranks(_calls, 2):
        # and a collective that the model does not know would be seen
        assert calls[:4] == expected and calls[4].kind == "barrier"
