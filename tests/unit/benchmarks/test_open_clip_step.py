"""open_clip's step around our towers is the step that it is compared with, up to what its module says."""

import logging
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import AlignmentModel
from promptmeup.records import Batch
from promptmeup.training.optim import OptimConfig, build_optimizer
from promptmeup.training.step import train_step
from tests.benchmarks.peers.open_clip_step import OpenClipSteps, first_gradients, open_clip_steps
from tests.benchmarks.peers.peer import MissingPeerError
from tests.support.ranks import one_world, run_ranks
from tests.unit.models import support

ROWS = 8
TEMPERATURE = "heads.temperature.value"
OPTIM = OptimConfig(lr=1e-2, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-4)
IMAGE_TEXT = LossConfig.model_validate({"weights": {"object_entity": 0, "image_relation": 0, "matching": 0}})
needs_open_clip = pytest.mark.skipif(
    not (find_spec("open_clip_train") and find_spec("ftfy")), reason="`make .venv/.peers` installs open_clip"
)


def _model() -> AlignmentModel:
    return support.tiny_model(fusion=False).train()


def _batch(world: World, number: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(world.rank + 10 * number)
    shape = (ROWS, 3, 64, 64)
    ids = torch.arange(ROWS) + ROWS * world.rank
    arrays = support.batch(rows=ROWS) | {
        "images_BCSS": torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    }
    arrays["tokens_BL"] = torch.where(
        arrays["token_mask_BL"], torch.randint(1000, 20000, arrays["tokens_BL"].shape, generator=generator), 0
    )
    return Batch(**arrays, image_ids_B=ids, caption_ids_B=ids, keys=tuple(map(str, ids.tolist())))


def _theirs(world: World, *batches: Batch, steps: int = 1, **changes: Any) -> OpenClipSteps:
    optim = {name: getattr(OPTIM, name) for name in ("lr", "weight_decay", "betas", "eps")}
    settings = optim | {"precision": "fp32", "gradient_clipping": 0.0} | changes
    return open_clip_steps(_model(), batches or (_batch(world),), world=world, steps=steps, **settings)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(tensor.norm().item() for tensor in tensors))


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of a tensor.

    A ten-thousandth of the whole norm is the least that any is measured by: the biases of attention's keys have no
    gradient but rounding, 1e-11 of the whole.
    """
    assert found.keys() == expected.keys()
    least = 1e-4 * _norm(expected.values())
    return max(
        (found[name] - value).norm().item() / max(value.norm().item(), least)
        for name, value in expected.items()
    )


def _one_step_of_each(world: World, clipping: float) -> dict[str, float]:
    """Return how far the two sides are from each other, and the factor between their towers' clipped gradients."""
    model = _model()
    engine = build_engine(
        model,
        optimizer=build_optimizer(model, backbones=[], config=OPTIM),
        config=EngineConfig(zero_stage=0, gradient_clipping=clipping),
        batch=ROWS,
        world=world,
    )
    batch, exchange = _batch(world), WorldExchange(world)
    train_step(engine, batch, banks=None, losses=IMAGE_TEXT, dtype=torch.float32, exchange=exchange)
    theirs = _theirs(world, batch, gradient_clipping=clipping)
    theirs()

    before = _model().state_dict()
    temperature = before.pop(TEMPERATURE)
    expected = first_gradients(engine.module, engine.optimizer)
    of_temperature = expected.pop(TEMPERATURE)
    of_scale = first_gradients(theirs.model, theirs.optimizer)["logit_scale"]
    found = first_gradients(theirs.model.towers, theirs.optimizer)
    factor = _norm(found.values()) / _norm(expected.values())
    updates, expected_updates = (
        {name: side.state_dict()[name] - value for name, value in before.items()}
        for side in (theirs.model.towers, engine.module)
    )
    return {
        "factor": factor,
        "expected factor": _norm([*expected.values(), of_temperature])
        / _norm([*expected.values(), temperature * of_temperature]),
        "gradients": _difference({name: value / factor for name, value in found.items()}, expected),
        "gradient of the scale": (of_scale / factor / (-temperature * of_temperature)).item() - 1,
        "updates": _norm(updates[name] - value for name, value in expected_updates.items())
        / _norm(expected_updates.values()),
    }


@needs_open_clip
@pytest.mark.parametrize("size", [1, 2])
def test_the_first_step_is_ours(size: int) -> None:
    for answer in run_ranks(_one_step_of_each, size, 0.0, timeout=120):
        assert answer["factor"] == pytest.approx(1, abs=1e-5)
        assert answer["gradients"] < 1e-5
        assert answer["gradient of the scale"] == pytest.approx(0, abs=1e-5)
        assert answer["updates"] < 1e-5


@needs_open_clip
@pytest.mark.parametrize("size", [1, 2])
def test_clipping_differs_by_what_the_temperature_has_in_the_norm(size: int) -> None:
    for answer in run_ranks(_one_step_of_each, size, 1.0, timeout=120):
        assert answer["factor"] > 1.01
        assert answer["factor"] == pytest.approx(answer["expected factor"], rel=1e-5)
        assert answer["gradients"] < 1e-5
        assert answer["gradient of the scale"] == pytest.approx(0, abs=1e-5)


@needs_open_clip
def test_the_same_parameters_are_decayed() -> None:
    theirs, model = _theirs(one_world()), _model()
    ours = build_optimizer(model, backbones=[], config=OPTIM)

    def decayed(module: AlignmentModel, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        return {name: decay[id(p)] for name, p in module.named_parameters() if name != TEMPERATURE}

    assert decayed(theirs.model.towers, theirs.optimizer) == decayed(model, ours)


@needs_open_clip
def test_calls_go_on_where_the_last_one_ended_without_a_word(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    world, handlers = one_world(), list(logging.root.handlers)
    caplog.set_level(logging.INFO)
    batches = [_batch(world, number) for number in range(3)]
    theirs = _theirs(world, *batches, steps=2)
    seen: list[Tensor] = []
    theirs.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    theirs()
    theirs()
    assert all(torch.equal(a, batches[i].tokens_BL) for a, i in zip(seen, (0, 1, 2, 0), strict=True))
    assert {state["step"].item() for state in theirs.optimizer.state.values()} == {4}
    assert {group["lr"] for group in theirs.optimizer.param_groups} == {OPTIM.lr}
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])
    assert logging.root.handlers == handlers


@needs_open_clip
@pytest.mark.parametrize(
    ("precision", "weights"), [("amp_bf16", torch.float32), ("pure_bf16", torch.bfloat16)]
)
def test_low_precision_is_the_one_that_was_asked_for(precision: str, weights: torch.dtype) -> None:
    theirs = _theirs(one_world(), precision=precision)
    dtypes: set[torch.dtype] = set()
    theirs.model.towers.heads.text.register_forward_hook(lambda *values: dtypes.add(values[2].dtype))
    before = theirs.model.logit_scale.item()
    theirs()
    assert {p.dtype for p in theirs.model.parameters()} == {weights}
    assert dtypes == {torch.bfloat16}
    assert theirs.model.logit_scale.item() != before


@needs_open_clip
def test_batches_that_are_another_loss_to_open_clip_are_refused() -> None:
    batch = _batch(one_world())
    falsified = replace(batch, caption_ids_B=batch.caption_ids_B.roll(1))
    twice = replace(batch, image_ids_B=batch.image_ids_B * 0, caption_ids_B=batch.caption_ids_B * 0)
    for wrong in (falsified, twice):
        with pytest.raises(AssertionError, match="pairs"):
            _theirs(one_world(), wrong)
    with pytest.raises(AssertionError, match="mask"):
        _theirs(one_world(), replace(batch, token_mask_BL=torch.ones_like(batch.token_mask_BL)))


def test_what_is_missing_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip_train.train", None)
    with pytest.raises(MissingPeerError, match=r"open_clip_torch cannot be imported.*make bench-"):
        _theirs(one_world())
