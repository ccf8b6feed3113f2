"""What DeepSpeed keeps on a rank, counted in real engines on real ranks, and what it writes."""

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptmeup.distributed.memory import bucket_of, checkpoint_bytes, state_memory
from tests.support.ranks import run_ranks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _census() -> int:
    """Return the bytes of all storages that any tensor has, of those made since `gc.freeze()`, and that stay.

    gloo's thread lets go of a collective's tensors some time after the collective: what is gone a moment later was
    not kept by DeepSpeed.
    """
    found = []
    for wait in (0, 0.05, 0.2, 0.5):
        time.sleep(wait)
        found.append(_look())
    return min(found)


def _look() -> int:
    gc.collect()
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        # not isinstance, which wakes whatever is imported lazily
        if issubclass(type(found), torch.Tensor) and found.device.type == "cpu":
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _engine(world: Any, stage: int, precision: str) -> dict[str, float]:
    from promptmeup.distributed.engine import EngineConfig, build_engine, save_engine

    torch.manual_seed(0)
    gc.collect()
    gc.freeze()  # what is there already is not looked at
    # larger than DeepSpeed's threshold of 100,000, below which a parameter is never released
    model = torch.nn.Sequential(*[torch.nn.Linear(512, 512, bias=False) for _ in range(4)])
    engine = build_engine(
        model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config=EngineConfig.model_validate({"zero_stage": stage, "precision": precision}),
        batch=4,
        world=world,
    )
    found: dict[str, float] = {"parameters": 4 * 512 * 512}
    inner = engine.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    for step in range(3):
        x = torch.randn(4, 512, dtype=DTYPES[precision])
        loss = engine(x).float().square().mean()
        if step == 2:
            found["forward"] = _census()
            inner.register_step_post_hook(lambda *_: found.update(update=_census()))
        engine.backward(loss)
        del loss, x
        engine.step()
    with tempfile.TemporaryDirectory() as folder:
        if world.size == 1:
            save_engine(engine, folder=Path(folder), tag="tag")
            found["disk"] = sum(file.stat().st_size for file in Path(folder).rglob("*.pt"))
    return found


def _engines(world: Any) -> dict[tuple[int, str], dict[str, float]]:
    """All in one process of a rank: importing DeepSpeed is what takes long."""
    return {
        (stage, precision): _engine(world, stage, precision) for stage in (0, 1, 2, 3) for precision in DTYPES
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_states_of_a_rank(ranks: int) -> None:
    for (stage, precision), found in run_ranks(_engines, ranks, timeout=240)[0].items():
        _compare(found, stage, DTYPES[precision], ranks)


def _compare(found: dict[str, float], stage: Any, dtype: torch.dtype, ranks: int) -> None:
    parameters, width = int(found["parameters"]), dtype.itemsize
    state = state_memory(parameters, stage=stage, ranks=ranks, dtype=dtype)
    own, rounding = parameters // ranks, 0.04 * 4 * parameters
    kept = state.parameters + state.optimizer
    # at stage 3 the bucket and the partition of the gradients are there all the time
    kept += width * (own + bucket_of(parameters)) if stage == 3 else 0
    assert found["forward"] == pytest.approx(kept, abs=rounding), stage
    # what the float32 gradients are made of is gone when they are looked at, and so are gathered parameters
    gathered = width * parameters if stage == 3 and ranks > 1 else 0
    update = state.update - (width * own if stage in (1, 2) else 0)
    if stage == 0 and dtype is torch.float32:
        update = width * parameters
    expected = state.parameters - gathered + state.optimizer + update
    assert found["update"] == pytest.approx(expected, abs=rounding), stage
    if ranks == 1:
        written = checkpoint_bytes(parameters, stage=stage, dtype=dtype)
        assert found["disk"] == pytest.approx(written, rel=0.05), stage


def test_numbers_of_the_base_model() -> None:
    found = state_memory(196_000_000, stage=1, ranks=8, dtype=torch.bfloat16)
    assert (found.parameters, found.optimizer, found.gradients) == (392_000_000, 294_000_000, 392_000_000)
    assert found.peak(10**10) == 392_000_000 + 294_000_000 + 392_000_000 + 10**10
    # stage 2 keeps the bucket too
    assert state_memory(196_000_000, stage=2, ranks=8, dtype=torch.bfloat16) == found
    alone = state_memory(196_000_000, stage=0, ranks=1, dtype=torch.float32)
    assert alone.peak(0) == 16 * 196_000_000
