"""What an engine gives away of its parameters."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from promptmeup.distributed.engine import (
    EngineConfig,
    build_engine,
    compute_dtype,
    full_weights,
    load_engine,
    save_engine,
)
from promptmeup.distributed.world import World
from promptmeup.errors import ConfigError
from promptmeup.training.optim import OptimConfig, build_optimizer, set_rates
from tests.support.ranks import run_ranks


def _exported(world: World, stage: Literal[0, 1, 2, 3]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after ten updates so small that bfloat16 does not see one of them."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine: Any = build_engine(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-5),
        config=EngineConfig(zero_stage=stage, precision="bf16", gradient_clipping=0),
        batch=1,
        world=world,
    )
    for _ in range(10):
        engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).float().sum())
        engine.step()
    return before, full_weights(engine, world=world)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_exported_weights_are_the_optimizers_own(stage: int) -> None:
    """float32 as the optimizer keeps them, not the bf16 copies that the forward pass uses."""
    (before, after), (_, elsewhere) = run_ranks(_exported, 2, stage, timeout=120)
    assert elsewhere == {}
    for name, value in before.items():
        assert after[name].dtype is torch.float32
        # DeepSpeed rounds once, when it makes the engine
        expected = value.bfloat16().float() - 1e-4
        torch.testing.assert_close(after[name], expected, rtol=0, atol=2e-6)


def _resumed(world: World, stage: Literal[0, 1, 2, 3], folder: Path) -> tuple[Any, Any]:
    """Three updates, saved; then restored with other rates and constants. Numbers of weights and moments."""

    def build(config: OptimConfig, *, clipping: float = 1) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))  # a head as large as the encoder
        optimizer = build_optimizer(model, backbones=[model[0]], config=config)
        engine = EngineConfig(zero_stage=stage, precision="fp32", gradient_clipping=clipping)
        return build_engine(model, optimizer=optimizer, config=engine, batch=1, world=world)

    def moments(engine: Any) -> list[float]:
        found = [state for state in engine.optimizer.state.values() if "exp_avg" in state]
        return [float(state["exp_avg"].double().norm()) for state in found]

    first = build(OptimConfig(lr=1e-3, backbone_lr=1e-4))
    for _ in range(3):
        first.backward(first(torch.ones(1, 8)).square().sum())
        first.step()
    save_engine(first, folder=folder, tag="a")
    before = full_weights(first, world=world)
    expected = moments(first)
    for lr in (1e-4, 1e-5):
        config = OptimConfig(lr=lr, backbone_lr=1e-4, weight_decay=0.3, betas=(0.5, 0.6), eps=1e-3)
        second = build(config, clipping=0.01)
        load_engine(second, folder=folder, tag="a")
        after = full_weights(second, world=world)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert moments(second) == expected
        constants = [(g["weight_decay"], g["betas"], g["eps"]) for g in second.optimizer.param_groups]
        assert constants == [(decay, (0.5, 0.6), 1e-3) for decay in (0.0, 0.3, 0.0, 0.3)]
        assert getattr(second.optimizer, "clip_grad", 0.01) == 0.01
        set_rates(second.optimizer, peaks=[lr, lr, 1e-4, 1e-4], scale=1)
        second.backward(second(torch.ones(1, 8)).square().sum())
        second.step()
        moved = full_weights(second, world=world)
        assert max((moved[name] - value).abs().max() for name, value in before.items()) < 0.02
    return len(before), len(expected)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_goes_on_with_other_rates_and_constants(stage: int, tmp_path: Path) -> None:
    ((weights, moments),) = run_ranks(_resumed, 1, stage, tmp_path, timeout=120)
    assert weights == 4 and moments > 0


@pytest.mark.parametrize(
    ("asked", "device", "norm", "found"),
    [
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", False, torch.bfloat16),
        ("auto", "cuda", True, torch.float32),
        ("fp32", "cuda", True, torch.float32),
        ("bf16", "cpu", False, torch.bfloat16),
    ],
)
def test_precision_is_decided_for_the_model(asked: str, device: str, norm: bool, found: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4) if norm else nn.GroupNorm(1, 4))
    config = EngineConfig.model_validate({"precision": asked})
    assert compute_dtype(config, model, torch.device(device)) is found


def test_bf16_does_not_go_with_batch_normalisation() -> None:
    config = EngineConfig(precision="bf16")
    with pytest.raises(ConfigError, match=r"set engine\.precision=fp32, or choose a ViT"):
        compute_dtype(config, nn.BatchNorm2d(4), torch.device("cpu"))
