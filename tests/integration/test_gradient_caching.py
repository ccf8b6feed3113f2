"""k micro-batches give the update of one batch, at every ZeRO stage, on real ranks and real DeepSpeed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promptmeup.training.settings import PretrainConfig
from tests.integration.conftest import tiny_config, train_on_rank
from tests.integration.test_training import LOSSES, curve
from tests.support.ranks import run_ranks


def _updates(
    world: Any, config: PretrainConfig, micro_batches: list[int | None], plain_backward: bool
) -> list[tuple[Tensor, dict[str, float]]]:
    """Return the update of one SGD step, all parameters in a row, and its metrics, for each size of micro-batch."""
    from promptmeup.data.loader import train_batches
    from promptmeup.data.text import TextTokenizer
    from promptmeup.distributed.collectives import WorldExchange
    from promptmeup.distributed.engine import build_engine, compute_dtype, full_weights
    from promptmeup.models.text import load_tokenizer
    from promptmeup.training import cached
    from promptmeup.training.inputs import open_sources
    from promptmeup.training.pretrain import build
    from promptmeup.training.step import train_step

    if plain_backward:
        cached.one_reduction = lambda engine: nullcontext()
    sources, banks = open_sources(config, world)
    (batch,) = (
        next(
            train_batches(
                sources,
                config=config.data,
                tokenizer=TextTokenizer(load_tokenizer(config.model.text)),
                start_pairs=0,
                global_batch=config.global_batch,
                rank=world.rank,
                size=world.size,
            )
        ),
    )
    found = []
    for micro_batch in micro_batches:
        torch.manual_seed(0)
        model = build(config, banks)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        engine = build_engine(
            model,
            # the update is the gradient: Adam would hide a wrong scale
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            config=config.engine,
            batch=len(batch),
            world=world,
        )
        engine.train()
        metrics = train_step(
            engine,
            batch,
            banks=banks,
            losses=config.loss,
            dtype=compute_dtype(config.engine, model, world.device),
            exchange=WorldExchange(world),
            micro_batch=micro_batch,
        )
        after = full_weights(engine, world=world)
        update = [(after[name] - value).flatten() for name, value in before.items() if name in after]
        values = {name: value.item() for name, value in metrics.items()}
        found.append((torch.cat(update) if update else torch.zeros(0), values))
        engine.destroy()
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def _config(world: Path, stage: int, *overrides: str) -> PretrainConfig:
    return tiny_config(world, f"out={world}/unused", f"engine.zero_stage={stage}", "steps=1", *overrides)


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        *((stage, "loss.negatives=world") for stage in (0, 1, 2, 3)),
        *((stage, "loss.negatives=rank") for stage in (0, 3)),
        (1, "model.learn_temperature=false"),
    ],
)
def test_micro_batches_give_the_update_of_one_batch(news_world: Path, stage: int, override: str) -> None:
    config = _config(news_world, stage, "engine.gradient_clipping=0", "global_batch=32", override)
    # 16 rows of a rank in 1, 2, 4 and (the last of them smaller) 3 parts
    (whole, values), *cached = run_ranks(_updates, 2, config, [None, 8, 4, 6], False, timeout=240)[0]
    assert whole.norm() > 0.1
    for update, found in cached:
        assert _difference(update, whole) < 1e-6
        assert found.keys() == values.keys()
        for name, value in values.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("stage", [1, 2])
def test_plain_repeated_backward_would_be_wrong(news_world: Path, stage: int) -> None:
    """Why `one_reduction` is there; when this test fails, DeepSpeed has mended it and the context can go."""
    config = _config(news_world, stage, "engine.gradient_clipping=0", "global_batch=32")
    whole, cached = (update for update, _ in run_ranks(_updates, 2, config, [None, 4], True, timeout=240)[0])
    assert _difference(cached, whole) > 0.1


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_micro_batches_in_bfloat16(news_world: Path, stage: int) -> None:
    """A bf16 update differs by the rounding of sums over rows, 1 % or so, and not by a factor."""
    config = _config(
        news_world, stage, "engine.gradient_clipping=0", "engine.precision=bf16", "global_batch=32"
    )
    found = run_ranks(_updates, 2, config, [None, 8, 1], False, timeout=240)[0]
    whole, halves, rows = (update for update, _ in found)
    assert _difference(halves, whole) < 3e-2
    # sixteen parts, whose gradients are added up in bf16
    assert _difference(rows, whole) < 6e-2


def test_a_run_in_micro_batches_has_the_curve_of_the_run_without(news_world: Path, tmp_path: Path) -> None:
    """With the engine's own clipping and AdamW over many steps."""
    curves = []
    for name, override in (("whole", "micro_batch=null"), ("cached", "micro_batch=3")):
        config = tiny_config(news_world, f"out={tmp_path}/{name}", "steps=6", override)
        assert run_ranks(train_on_rank, 2, config, timeout=180) == [True, True]
        curves.append(curve(tmp_path / name))
    for step, values in curves[0].items():
        for name in (*LOSSES, "gradient_norm", "temperature"):
            assert curves[1][step][name] == pytest.approx(values[name], rel=2e-5, abs=1e-6), (step, name)


def _both_passes(world: Any, config: PretrainConfig) -> list[tuple[Tensor, Tensor]]:
    """Return the captions' and the fused features of every forward pass of a step, in order."""
    from promptmeup.training import cached

    original, seen = cached.forward, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        features = original(*args, **kwargs)
        seen.append((features.text_BD.detach(), features.relation_BD.detach()))
        return features

    cached.forward = watched
    _updates(world, config, [12], False)
    return seen


def test_dropout_is_the_same_in_both_passes(news_world: Path) -> None:
    """Were it drawn anew, the gradient would belong to other features."""
    config = _config(news_world, 0, "global_batch=32", "model.text.dropout=0.3")
    (seen,) = run_ranks(_both_passes, 1, config, timeout=240)
    assert [len(text) for text, _ in seen] == [12, 12, 8] * 2
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    # and there is dropout, or this would say nothing
    without = _config(news_world, 0, "global_batch=32", "model.text.dropout=0.0")
    (still,) = run_ranks(_both_passes, 1, without, timeout=240)
    assert not torch.allclose(still[0][0], seen[0][0], atol=1e-3)
