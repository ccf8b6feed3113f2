"""A checkpoint of one layout goes on in any other, and a step that is not taken leaves no trace."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from promptmeup.distributed.engine import (
    EngineConfig,
    build_engine,
    full_weights,
    load_engine,
    save_engine,
    skip_update,
)
from promptmeup.distributed.reading import read_checkpoint, read_whole
from promptmeup.distributed.resharding import give_optimizer, give_weights
from promptmeup.distributed.world import World
from promptmeup.records import RunState
from promptmeup.training import checkpoint
from tests.support.ranks import RankError, run_ranks

LAYOUTS = [(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)]


class _Model(nn.Module):
    """Odd sizes, so that every piece is padded; a frozen part, and buffers that a forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 13)
        self.frozen = nn.Linear(13, 13, bias=False).requires_grad_(False)
        self.last = nn.Linear(13, 3)
        self.register_buffer("mean", torch.zeros(13))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.frozen(torch.tanh(self.first(rows)))
        with torch.no_grad():
            self.mean.lerp_(hidden.mean(0).to(self.mean.dtype), 0.1)
            self.seen += 1
        return self.last(hidden)  # type: ignore[no-any-return]


def _optimizer(model: _Model) -> torch.optim.AdamW:
    decayed = [model.first.weight, model.last.weight]
    others = [model.first.bias, model.last.bias]
    groups = [
        {"params": decayed, "weight_decay": 0.5, "lr": 0.02},
        {"params": others, "weight_decay": 0.0, "lr": 0.05},
    ]
    return torch.optim.AdamW(groups, betas=(0.8, 0.9))


def _build(stage: int, precision: str, world: World) -> tuple[_Model, Any]:
    torch.manual_seed(0)
    model = _Model()
    config = EngineConfig(zero_stage=stage, precision=precision)  # type: ignore[arg-type]
    return model, partial(
        build_engine, model, optimizer=_optimizer(model), config=config, batch=4, world=world
    )


def _step(engine: Any, number: int, *, is_taken: bool = True) -> None:
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(number))
    dtype = next(engine.module.parameters()).dtype
    loss = engine(rows.to(dtype)).float().square().mean()
    if is_taken:
        engine.backward(loss)
        engine.step()
    else:
        engine.backward(loss * torch.nan)
        skip_update(engine)


def _write(world: World, root: Path) -> None:
    """Three steps and a checkpoint in every layout, and one before the first step."""
    for stage, precision in LAYOUTS:
        _, make = _build(stage, precision, world)
        engine = make()
        run = root / f"{precision}{stage}"
        for steps, place in ((0, run / "start"), (3, run)):
            for number in range(steps):
                _step(engine, number)
            state, write = RunState(step=steps), partial(save_engine, engine)
            assert checkpoint.save(write, run=place, state=state, world=world) is None


def _go_on(
    world: World, run: Path, stage: int, precision: str, *, is_loaded: bool = False
) -> dict[str, Tensor]:
    """Three more steps of the checkpoint in `run`, in the layout that is given."""
    model, make = _build(stage, precision, world)
    found = checkpoint.find(run, order={}, world=world)
    assert found is not None and found.state.step == 3
    if is_loaded:
        engine = make()
        load_engine(engine, folder=found.folder, tag=found.tag)
    else:
        whole = read_whole(found.folder, found.tag) if world.is_main else None
        give_weights(whole, model, world=world)
        engine = make()
        give_optimizer(whole, engine, world=world)
    for number in range(3, 6):
        _step(engine, number)
    return full_weights(engine, world=world)


def _uninterrupted(world: World, stage: int, precision: str, *, skips: bool = False) -> dict[str, Tensor]:
    _, make = _build(stage, precision, world)
    engine = make()
    for number in range(6):
        if skips and number in (2, 4):
            _step(engine, number + 100, is_taken=False)
        _step(engine, number)
    return full_weights(engine, world=world)


def _moved(world: World, root: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every float32 checkpoint in every layout with this number of ranks."""
    return [
        (
            f"{precision}{before} -> {after} on {world.size}",
            _go_on(world, root / f"{precision}{before}", after, precision),
        )
        for before, precision in LAYOUTS
        if precision == "fp32"
        for after in range(4)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts")
    run_ranks(_write, 2, root, timeout=200)
    return root


@pytest.fixture(scope="module")
def whole_run() -> dict[str, Tensor]:
    (found,) = run_ranks(_uninterrupted, 1, 0, "fp32", timeout=120)
    return found  # type: ignore[no-any-return]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [1, 3])
def test_any_layout_goes_on_in_any_other(written: Path, whole_run: dict[str, Tensor], ranks: int) -> None:
    for case, found in run_ranks(_moved, ranks, written, timeout=350)[0]:
        assert found.keys() == whole_run.keys()
        for name, value in whole_run.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=f"{case}, {name}")


def _extra(stage: int, precision: str) -> int:
    """Updates that DeepSpeed counts before the first one: of bf16 without ZeRO it makes one, of zeros."""
    return int((stage, precision) == (0, "bf16"))


def _written_again(world: World, root: Path, out: Path) -> None:
    """Move every checkpoint to every layout with this number of ranks, and write it there at once."""
    for before, precision in LAYOUTS:
        place = root / f"{precision}{before}/checkpoints"
        for after in range(4):
            model, make = _build(after, precision, world)
            whole = read_whole(place, "step-00000003") if world.is_main else None
            give_weights(whole, model, world=world)
            engine = make()
            give_optimizer(whole, engine, world=world)
            save_engine(engine, folder=out, tag=f"{precision}{before}{after}")


def test_moving_is_exact(written: Path, tmp_path: Path) -> None:
    """Weights, moments and the number of updates, bit by bit, in float32 and bfloat16."""
    run_ranks(_written_again, 3, written, tmp_path, timeout=200)
    for before, precision in LAYOUTS:
        whole = read_whole(written / f"{precision}{before}/checkpoints", "step-00000003")
        assert whole.updates == 3 + _extra(before, precision)
        assert whole.moments["exp_avg"].keys() == whole.moments["exp_avg_sq"].keys()
        for after in range(4):
            again = read_whole(tmp_path, f"{precision}{before}{after}")
            assert again.updates == whole.updates
            for one, other in zip(
                (whole.weights, *whole.moments.values()),
                (again.weights, *again.moments.values()),
                strict=True,
            ):
                assert one.keys() == other.keys()
                assert all(torch.equal(value, other[name]) for name, value in one.items()), (before, after)


def test_from_one_precision_to_the_other(written: Path, whole_run: dict[str, Tensor]) -> None:
    for before, after in (("fp32", "bf16"), ("bf16", "fp32")):
        found = run_ranks(_go_on, 1, written / f"{before}1", 2, after, timeout=120)[0]
        for name, value in whole_run.items():
            torch.testing.assert_close(found[name], value, rtol=2e-2, atol=2e-2)


def _with_and_without_skips(world: World) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return [
        (_uninterrupted(world, *layout), _uninterrupted(world, *layout, skips=True)) for layout in LAYOUTS
    ]


def test_a_skipped_step_leaves_no_trace() -> None:
    found = run_ranks(_with_and_without_skips, 2, timeout=200)[0]
    for layout, (without, skipped) in zip(LAYOUTS, found, strict=True):
        for name in ("first.weight", "first.bias", "last.weight", "last.bias"):
            assert skipped[name].isfinite().all()
            assert torch.equal(without[name], skipped[name]), (layout, name)


def test_weights_before_the_first_step(written: Path) -> None:
    torch.manual_seed(0)
    first = _Model().state_dict()
    for stage, precision in LAYOUTS:
        place = written / f"{precision}{stage}/start/checkpoints"
        whole = read_whole(place, "step-00000000")
        weights = read_checkpoint(place, "step-00000000")
        assert whole.updates == _extra(stage, precision)
        for name, value in first.items():
            assert torch.equal(whole.weights[name], weights[name])
            if _extra(stage, precision):
                continue  # that update decays the weights
            expected = value if precision == "fp32" or not value.is_floating_point() else value.bfloat16()
            assert torch.equal(weights[name], expected.to(weights[name].dtype)), (stage, precision, name)


def _other_model(world: World, run: Path) -> None:
    found = checkpoint.find(run, order={}, world=world)
    assert found is not None
    whole = read_whole(found.folder, found.tag) if world.is_main else None
    give_weights(whole, nn.Linear(7, 13), world=world)


def test_another_model_is_refused(written: Path) -> None:
    with pytest.raises(RankError, match=r"the checkpoint is of another model: bias, weight differ"):
        run_ranks(_other_model, 1, written / "fp321", timeout=120)
