"""Activation checkpointing under DeepSpeed: the same curve at every stage, also where parameters are gathered again."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig
from promptmeup.models.layers import checkpoint_layers
from promptmeup.training.step import train_step
from tests.support.ranks import run_ranks
from tests.unit.models import support
from tests.unit.training.test_captions_in_groups import WEIGHTS, sorted_batch


def _curve(world: World, stage: int, kind: Any) -> list[float]:
    model = support.tiny_model(text=support.tiny_text(dropout=0.1)).train()
    checkpoint_layers(model, kind)
    batch = sorted_batch(world.rank)
    engine = build_engine(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        config=EngineConfig(zero_stage=stage),  # type: ignore[arg-type]
        batch=len(batch),
        world=world,
    )
    losses, exchange = LossConfig(weights=WEIGHTS), WorldExchange(world)  # type: ignore[arg-type]
    found = []
    for number in range(3):
        torch.manual_seed(number)  # of dropout, as in a run
        metrics = train_step(engine, batch, banks=None, losses=losses, dtype=torch.float32, exchange=exchange)
        found.append(metrics["loss/total"].item())
    return found


@pytest.mark.parametrize(("stage", "kinds"), [(1, ("selective", "full")), (3, ("full",))])
def test_curves_of_two_ranks(stage: int, kinds: tuple[str, ...]) -> None:
    kept = run_ranks(_curve, 2, stage, "none", timeout=120)
    for kind in kinds:
        assert run_ranks(_curve, 2, stage, kind, timeout=120) == kept, kind


def test_selective_checkpointing_does_not_go_with_stage_3() -> None:
    """Its curve leaves the other by 1e-6 at the third step, when DeepSpeed has learnt the order of parameters."""
    with pytest.raises(ValidationError, match="take full, or zero_stage 2"):
        EngineConfig(zero_stage=3, activation_checkpointing="selective")
