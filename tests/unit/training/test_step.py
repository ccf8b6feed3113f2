"""What happens in a step, and in which order: exchanges are hidden, numbers that are not finite are not trained on."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine, update
from promptmeup.distributed.world import World
from promptmeup.errors import NotFiniteError, TrainingError
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import AlignmentModel
from promptmeup.records import Banks, Batch, SoftLabels
from promptmeup.training.step import train_step
from tests.support.ranks import run_ranks
from tests.unit.models import support

ROWS = 4


def _batch(world: World) -> Batch:
    arrays = support.batch(rows=ROWS)
    ids = torch.arange(ROWS) + ROWS * world.rank

    def labels(*shape: int) -> SoftLabels:
        ids = torch.arange(3).expand(*shape, 3)
        return SoftLabels(
            ids, torch.tensor([0.5, 0.2, 0.1]).expand(*shape, 3), torch.ones(shape, dtype=torch.bool)
        )

    return Batch(
        **(arrays | {"images_BCSS": (arrays["images_BCSS"] * 50 + 120).clamp(0, 255).to(torch.uint8)}),
        image_ids_B=ids,
        caption_ids_B=ids.where(ids % 3 > 0, ids + 100),
        keys=tuple(f"photo{number}" for number in ids.tolist()),
        object_labels=labels(ROWS, 2),
        image_labels=labels(ROWS),
    )


def _banks() -> Banks:
    generator = torch.Generator().manual_seed(5)

    def bank(rows: int, width: int) -> Tensor:
        return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)

    return Banks(bank(12, support.ENTITY_WIDTH), bank(9, support.RELATION_WIDTH))


class _Engine:
    """What `train_step` needs of an engine, without its optimizer."""

    def __init__(self, module: AlignmentModel) -> None:
        self.module, self.steps = module, 0

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1

    def zero_optimization_stage(self) -> int:
        return 0

    def was_step_applied(self) -> bool:
        return True

    @property
    def optimizer(self) -> Any:
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.module.zero_grad(set_to_none)


def _train(engine: Any, batch: Batch, exchange: WorldExchange, **changes: Any) -> dict[str, Tensor]:
    """One step, of all losses unless `changes` say otherwise."""
    settings = {"banks": _banks(), "losses": LossConfig(), "dtype": torch.float32} | changes
    return train_step(engine, batch, exchange=exchange, **settings)


class _Recorded(WorldExchange):
    """Says when each exchange began and when it was waited for."""

    def __init__(self, world: World, events: list[str]) -> None:
        super().__init__(world)
        self.events = events

    def _noted(self, name: str, wait: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.events.append(f"{name} begins")

        def waiting() -> Tensor:
            self.events.append(f"{name} is awaited")
            return wait()

        return waiting

    def gather(self, rows: Tensor) -> Callable[[], Tensor]:
        return self._noted("gather", super().gather(rows))

    def scatter_sum(self, rows: Tensor) -> Callable[[], Tensor]:
        return self._noted("return", super().scatter_sum(rows))


class _Event(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, events: list[str], name: str) -> Tensor:
        events.append(name)
        ctx.events, ctx.name = events, name
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.events.append(f"{ctx.name}, backward")
        return gradients[0], None, None


def _watch(module: nn.Module, events: list[str], name: str) -> None:
    """Note when `module` runs, forward and backward."""

    def after(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        if isinstance(outputs, tuple):
            return (_Event.apply(outputs[0], events, name), *outputs[1:])
        return _Event.apply(outputs, events, name)

    module.register_forward_hook(after)


def _order(world: World, stage: int | None) -> list[str]:
    events: list[str] = []
    model = support.tiny_model().train()
    _watch(model.text, events, "text")
    assert model.fusion is not None
    _watch(model.fusion, events, "fusion")
    engine: Any = _Engine(model)
    if stage is not None:
        engine = build_engine(
            model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            config=EngineConfig(zero_stage=stage),  # type: ignore[arg-type]
            batch=ROWS,
            world=world,
        )
    _train(engine, _batch(world), _Recorded(world, events))
    return events


@pytest.mark.parametrize("stage", [None, 1, 3])
def test_captions_travel_while_the_fusion_half_works(stage: int | None) -> None:
    for events in run_ranks(_order, 2, stage, timeout=120):
        assert events == [
            "text",
            "gather begins",
            "fusion",
            "gather is awaited",
            "return begins",
            "fusion, backward",
            "return is awaited",
            "text, backward",
        ]


def _poisoned(world: World, micro_batch: int | None, losses: LossConfig) -> tuple[str, int]:
    """A photo of rank 1 breaks the vision encoder; what each rank says, and how often it updated."""
    model = support.tiny_model()
    engine = _Engine(model)
    model.vision.forward = partial(_spoilt, forward=model.vision.forward)  # type: ignore[method-assign]
    batch = _batch(world)
    if world.rank == 1:
        images_BCSS = batch.images_BCSS.clone()
        images_BCSS[2] = 7
        batch = replace(batch, images_BCSS=images_BCSS)
    try:
        _train(engine, batch, WorldExchange(world), micro_batch=micro_batch, losses=losses)
    except TrainingError as error:
        return str(error), engine.steps
    return "", engine.steps


@pytest.mark.parametrize("negatives", ["world", "rank"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_nan_is_reported_with_its_image_and_not_trained_on(micro_batch: int | None, negatives: Any) -> None:
    losses = LossConfig(negatives=negatives)
    (healthy, steps), (poisoned, poisoned_steps) = run_ranks(_poisoned, 2, micro_batch, losses, timeout=120)
    assert steps == poisoned_steps == 0
    # the whole world's loss is spoilt, and every rank stops
    assert healthy.startswith("loss/total = nan, loss/image_text = nan")
    assert "all features of this rank are finite" in healthy
    assert "1 of this rank's 4 pairs have features that are not finite; images: photo6" in poisoned


def _spoilt(images_BCSS: Tensor, forward: Any) -> Any:
    vector_BH, tokens_BPH = forward(images_BCSS)
    return vector_BH.masked_fill((images_BCSS.flatten(1).std(1) < 1e-6)[:, None], torch.nan), tokens_BPH


@pytest.mark.parametrize("rows", [ROWS, 1])
def test_nan_that_counts_nowhere_is_refused_too(rows: int) -> None:
    """A photo whose label is not kept: the loss is finite, and the gradient would be 0 · NaN all the same."""
    world = World(0, 1, 0, torch.device("cpu"))
    engine = _Engine(support.tiny_model())
    engine.module.vision.forward = partial(_spoilt, forward=engine.module.vision.forward)  # type: ignore[method-assign]
    batch = _batch(world)
    images_BCSS, keep = batch.images_BCSS.clone(), torch.ones(ROWS, dtype=torch.bool)
    images_BCSS[0], keep[0] = 7, False
    assert batch.image_labels is not None
    labels = replace(batch.image_labels, keep=keep)
    batch = replace(batch, images_BCSS=images_BCSS, image_labels=labels).rows(0, rows)
    weights = {"image_text": 0, "object_entity": 0, "matching": 0}
    with pytest.raises(TrainingError, match=rf"1 of this rank's {rows} pairs .*images: photo0"):
        _train(engine, batch, WorldExchange(world), losses=LossConfig(weights=weights))  # type: ignore[arg-type]
    assert engine.steps == 0


def test_a_temperature_that_is_not_finite_is_named() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    engine = _Engine(support.tiny_model())
    with torch.no_grad():
        engine.module.heads.relation_temperature.value.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"loss/image_relation = nan, relation_temperature = nan"):
        _train(engine, _batch(world), WorldExchange(world))


def test_a_dual_encoder_sends_and_waits_without_fusion() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    events: list[str] = []
    model = support.tiny_model(fusion=False).train()
    engine = _Engine(model)
    weights = {"object_entity": 0, "image_relation": 0, "matching": 0}
    losses = LossConfig(weights=weights)  # type: ignore[arg-type]
    metrics = _train(engine, _batch(world), _Recorded(world, events), banks=None, losses=losses)
    assert events == ["gather begins", "gather is awaited", "return begins", "return is awaited"]
    assert engine.steps == 1
    assert metrics["loss/total"] == metrics["loss/image_text"] > 0


def test_without_the_image_text_loss_nothing_is_sent() -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    events: list[str] = []
    engine = _Engine(support.tiny_model().train())
    losses = LossConfig(weights={"image_text": 0})  # type: ignore[arg-type]
    _train(engine, _batch(world), _Recorded(world, events), losses=losses)
    assert events == []


def _clipped(world: World, clipping: float) -> float:
    """Norm of the update of one SGD step whose gradient has a norm of 3."""
    model = nn.Linear(1, 9, bias=False)
    before = model.weight.detach().clone()
    engine = build_engine(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config=EngineConfig(gradient_clipping=clipping, zero_stage=1),
        batch=1,
        world=world,
    )
    engine.backward(engine(torch.ones(1, 1)).sum())
    engine.step()
    return (model.weight.detach() - before).norm().item()


@pytest.mark.parametrize(("clipping", "norm"), [(0.0, 3.0), (1.0, 1.0), (2.0, 2.0)])
def test_gradients_are_clipped_as_configured(clipping: float, norm: float) -> None:
    """DeepSpeed's own default became 1.0 at some version: unset, an update would be a third of itself here."""
    assert run_ranks(_clipped, 1, clipping, timeout=120) == [pytest.approx(norm, rel=1e-5)]


def _not_finite(world: World, stage: Any, clipping: float) -> tuple[list[str], bool, bool]:
    """A gradient that is not finite behind a loss that is: what is said in two steps, and whether anything changed."""
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()
    engine = build_engine(
        model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1.0),
        config=EngineConfig(zero_stage=stage, gradient_clipping=clipping),
        batch=1,
        world=world,
    )
    said = []
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 4)).sum() + _infinite_slope(engine))
        try:
            update(engine)
        except NotFiniteError as error:
            said.append(str(error))
    unchanged = torch.equal(model.weight, before)
    engine.backward(engine(torch.ones(1, 4)).sum())
    update(engine)
    return said, unchanged, bool(model.weight.isfinite().all() and not torch.equal(model.weight, before))


def _infinite_slope(engine: Any) -> Tensor:
    """Return 0, whose gradient is infinite: the square root of nothing."""
    return (engine.module.weight * 0).sum().sqrt()


@pytest.mark.parametrize(("stage", "ranks"), [("auto", 1), (0, 2), ("auto", 2)])
@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(stage: Any, ranks: int, clipping: float) -> None:
    expected = (["the gradient is not finite"] * 2, True, True)
    assert run_ranks(_not_finite, ranks, stage, clipping, timeout=120) == [expected] * ranks


@pytest.mark.parametrize(
    ("ranks", "dtype", "stage"),
    [(1, torch.float32, 0), (1, torch.bfloat16, 1), (2, torch.float32, 1), (8, torch.bfloat16, 1)],
)
def test_stages_that_are_chosen(ranks: int, dtype: torch.dtype, stage: int) -> None:
    assert EngineConfig().stage(ranks=ranks, dtype=dtype) == stage
    assert EngineConfig(zero_stage=2).stage(ranks=ranks, dtype=dtype) == 2


def test_compiling_does_not_go_with_stage_3() -> None:
    with pytest.raises(ValidationError, match="take zero_stage 2"):
        EngineConfig(zero_stage=3, compile=True)


def _with_a_scalar_parameter(world: World) -> None:
    model = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.tensor(0.07))
    build_engine(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config=EngineConfig(),
        batch=1,
        world=world,
    )


def test_parameters_without_a_dimension_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"0-dim parameters crash DeepSpeed: use shape \[1\]"):
        _with_a_scalar_parameter(World(0, 1, 0, torch.device("cpu")))
