"""Captions worked on in groups of their lengths: the same features, gradients and curves as all at the longest."""

from dataclasses import replace

import pytest
import torch

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig
from promptmeup.records import Batch
from promptmeup.training.step import train_step
from promptmeup.training.throughput import worked_on
from tests.support.ranks import run_ranks
from tests.unit.models import support

ROWS, LONGEST = 48, 32
WEIGHTS = {"object_entity": 0, "image_relation": 0}


def sorted_batch(rank: int = 0) -> Batch:
    """Captions of 3 to 32 tokens, other ones on each rank."""
    generator = torch.Generator().manual_seed(rank)
    lengths = torch.randint(3, LONGEST + 1, (ROWS,), generator=generator).sort().values
    mask_BL = torch.arange(LONGEST) < lengths[:, None]
    tokens_BL = torch.randint(1000, 20000, (ROWS, LONGEST), generator=generator)
    ids = torch.arange(ROWS) + ROWS * rank
    return Batch(
        images_BCSS=torch.randint(0, 256, (ROWS, 3, 64, 64), generator=generator, dtype=torch.uint8),
        tokens_BL=tokens_BL.where(mask_BL, 0),
        token_mask_BL=mask_BL,
        image_ids_B=ids,
        caption_ids_B=ids.where(ids % 3 > 0, ids + 1000),
        boxes_BM4=torch.tensor([[0.1, 0.0, 0.7, 0.6], [0.5, 0.25, 1.0, 1.0]]).repeat(ROWS, 1, 1),
        box_mask_BM=torch.ones(ROWS, 2, dtype=torch.bool),
        keys=tuple(map(str, ids.tolist())),
        lengths=tuple(lengths.tolist()),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"fusion": False}, {"text_pooling": "mean", "image_pooling": "patches"}]
)
def test_features_and_gradients(changes: dict[str, object]) -> None:
    model, batch = support.tiny_model(**changes), sorted_batch()
    assert len(worked_on(batch)) == 3
    inputs = {"tokens_BL": batch.tokens_BL, "token_mask_BL": batch.token_mask_BL}
    inputs |= {"boxes_BM4": batch.boxes_BM4, "box_mask_BM": batch.box_mask_BM}
    images = batch.images_BCSS / 255
    found = []
    for lengths in (None, batch.lengths):
        features = model(images, **inputs, lengths=lengths)
        values = {name: value for name, value in features.items() if value.requires_grad}
        weighted = [
            (value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum() for value in values.values()
        ]
        model.zero_grad()
        torch.stack(weighted).sum().backward()
        found.append((values, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), (grouped, grouped_gradients) = found
    for name, value in whole.items():
        torch.testing.assert_close(grouped[name], value, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == grouped_gradients.keys()
    # a key's bias has no influence on attention: what it has of a gradient is rounding
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = (grouped_gradients[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("known", [True, False])
def test_micro_batches_have_groups_of_their_own(known: bool) -> None:
    """As `cached_step` cuts them; the last one is smaller."""
    batch = sorted_batch() if known else replace(sorted_batch(), lengths=None)
    parts = [batch.rows(first, first + 20) for first in range(0, ROWS, 20)]
    assert worked_on(batch, micro_batch=20) == [span for part in parts for span in worked_on(part)]
    assert [rows for rows, _ in worked_on(batch, micro_batch=20)] == [20, 20, 8]
    assert worked_on(batch, micro_batch=ROWS) == worked_on(batch)


def _curve(world: World, stage: int, grouped: bool, micro_batch: int | None) -> list[float]:
    model = support.tiny_model().train()
    engine = build_engine(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        config=EngineConfig(zero_stage=stage),  # type: ignore[arg-type]
        batch=ROWS,
        world=world,
    )
    batch = sorted_batch(world.rank)
    batch = batch if grouped else replace(batch, lengths=None)
    losses = LossConfig(weights=WEIGHTS)  # type: ignore[arg-type]
    settings = {"banks": None, "losses": losses, "dtype": torch.float32, "micro_batch": micro_batch}
    exchange = WorldExchange(world)
    found = [train_step(engine, batch, exchange=exchange, **settings) for _ in range(4)]  # type: ignore[arg-type]
    return [metrics["loss/total"].item() for metrics in found]


@pytest.mark.parametrize(("stage", "micro_batch"), [(0, None), (1, None), (2, 24), (3, None)])
def test_curves_of_two_ranks(stage: int, micro_batch: int | None) -> None:
    """At stage 3 a rank that called a layer less often would hang the others."""
    whole, again = run_ranks(_curve, 2, stage, False, None, timeout=120)
    assert whole == again and whole[-1] < whole[0] - 0.01
    grouped = run_ranks(_curve, 2, stage, True, micro_batch, timeout=120)
    assert grouped == [pytest.approx(whole, rel=1e-4)] * 2
