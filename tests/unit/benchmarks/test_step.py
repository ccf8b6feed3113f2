"""bench-step: what it trains, what it counts, and whether times go to the parts that took them."""

import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from promptmeup.distributed.world import World
from promptmeup.training import pretrain
from tests.benchmarks import step
from tests.benchmarks.stepping.breakdown import PARTS, breakdown
from tests.benchmarks.stepping.clock import Clock
from tests.benchmarks.stepping.subjects import CAPTION_MEAN, Ours, Subject
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")
TINY = Subject("tiny", "student")


def test_batches_are_like_those_of_news() -> None:
    first, again, second = (
        *TINY.batches(512, 1, CPU),
        *TINY.batches(512, 2, CPU)[:1],
        TINY.batches(512, 2, CPU)[1],
    )
    assert torch.equal(first.tokens_BL, again.tokens_BL) and not torch.equal(
        first.tokens_BL, second.tokens_BL
    )
    assert first.lengths is not None
    assert list(first.lengths) == sorted(first.lengths) == first.token_mask_BL.sum(1).tolist()
    assert sum(first.lengths) / 512 == pytest.approx(CAPTION_MEAN, abs=1)
    counted = step.Counted(TINY, [first])
    assert counted.real < counted.worked < counted.padded


def _parts(world: World, trace: Path) -> dict[str, float]:
    ours = Ours(TINY, TINY.batches(16, 2, CPU), world=world)
    ours()
    slow = ours.model.vision.forward

    def slowly(*arguments: Any) -> Any:
        # an operation of half a second or more, so that its part must be the largest
        began = time.perf_counter()
        while time.perf_counter() - began < 0.5:
            torch.randn(200, 200).mm(torch.randn(200, 200))
        return slow(*arguments)

    ours.model.vision.forward = slowly  # type: ignore[method-assign]
    return breakdown(ours, ours.model, steps=1, trace=trace)


def test_every_part_of_a_step_has_its_time(tmp_path: Path) -> None:
    (found,) = run_ranks(_parts, 1, tmp_path / "trace.json", timeout=120)
    total = sum(found.values())
    assert list(found) == list(PARTS)
    assert found["vision"] > 0.3
    assert all(found[part] > 0 for part in ("text", "fusion", "heads", "loss", "optimizer", "gradients"))
    assert found["other"] < 0.15 * (total - found["vision"]), found
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def _levers(world: World) -> None:
    ours = Ours(TINY, TINY.batches(32, 2, CPU), world=world)
    before = ours.batches
    for name, lever in step.levers(CPU).items():
        step.within(lever, ours)()
        assert ours.batches is before, name
        assert not any("forward" in vars(layer) for layer in step.transformer_layers(ours.model)), name
        assert not any(group["foreach"] for group in ours.engine.optimizer.param_groups), name


def test_levers_change_the_step_and_are_undone() -> None:
    run_ranks(_levers, 1, timeout=120)


def test_overhead_is_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps that are all update, half a step is spent elsewhere."""
    import deepspeed

    monkeypatch.setattr(deepspeed.DeepSpeedEngine, "step", lambda *_: time.sleep(0.02))
    clock = Clock(CPU, warmup=1)

    def fit(one: Any, batches: Any, *, total_steps: int) -> None:
        for number in range(total_steps):
            time.sleep(0.02)
            one(next(batches), number)

    def one(*_: Any) -> None:
        deepspeed.DeepSpeedEngine.step(None)

    monkeypatch.setattr(pretrain, "fit", fit)
    with clock.watching():
        pretrain.fit(one, iter(range(9)), total_steps=9)  # type: ignore[call-arg, arg-type]
    assert clock.steps == 7
    assert clock.overhead == pytest.approx(0.5, abs=0.1)
    assert clock.seconds == pytest.approx(0.04, rel=0.3)


def _command(world: World) -> tuple[Any, Any]:
    with mock.patch.multiple(step, RUN_STEPS=6, RUN_WARMUP=2):
        return step.measure_command("tiny", 4, world)


def test_the_command_on_shards() -> None:
    ((rows, summary),) = run_ranks(_command, 1, timeout=120)
    assert rows[0]["steps"] == 3
    assert 0 < summary["loop_overhead"] < 1
    assert summary["command_pairs_per_second"] > 0
