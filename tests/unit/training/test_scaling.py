"""launch/scaling.py: what it says of the shipped configurations, offline and without a GPU."""

from pathlib import Path

import pytest
import torch

from promptmeup.config import load
from promptmeup.distributed.scaling import Cluster
from promptmeup.errors import ConfigError
from promptmeup.training.scaling import Assumed, ScalingModel
from promptmeup.training.scaling_command import parse, run
from promptmeup.training.settings import PretrainConfig

ROOT = Path(__file__).parents[3]
BASE, TINY = (str(ROOT / f"configs/pretrain/{name}.yaml") for name in ("base", "tiny"))
ASSUMED = Assumed(Cluster(8, 300e9, 50e9, 1e-6, 5e-6), flops=989e12, mfu=0.4)


def test_the_base_model() -> None:
    model = ScalingModel(load(PretrainConfig, Path(BASE)))
    assert (model.parameters, model.dtype) == (pytest.approx(196.1e6, rel=1e-3), torch.bfloat16)
    sent = {
        stage: sum(one.sent(1024) for one in model.collectives(1024, 128, stage) if one.what == "gradients")
        for stage in (0, 3)
    }
    assert sent == {0: pytest.approx(4 * 196.1e6, rel=2e-3), 3: pytest.approx(2 * 196.1e6, rel=2e-3)}
    # as the dry run has it: 24.7 TFLOP a rank of 128 pairs
    assert sum(model.passes(128, 1024, ASSUMED)) == pytest.approx(0.0623, rel=1e-3)
    weak, strong = model.weak((8, 64, 1024), ASSUMED), model.strong((8, 64, 1024, 2048), ASSUMED)
    assert [(one.ranks, one.rows) for one in weak] == [(8, 128), (64, 128), (1024, 128)]
    assert [(one.ranks, one.rows) for one in strong] == [(8, 128), (64, 16), (1024, 1)]
    for found in (weak, strong):
        efficiencies = [one.efficiency(one.time.exposed) for one in found]
        assert sorted(efficiencies, reverse=True) == efficiencies
        assert all(one.time.compute < one.time.hidden <= one.time.exposed for one in found)
    # the losses' share grows with the global batch
    assert weak[0].time.compute < weak[-1].time.compute < 1.01 * weak[0].time.compute


def test_micro_batches_cost_a_forward_pass_and_at_stage_0_a_reduction_each() -> None:
    config = load(PretrainConfig, Path(TINY), ["engine.zero_stage=0", "global_batch=64", "micro_batch=2"])
    cached, plain = (ScalingModel(one) for one in (config, config.model_copy(update={"micro_batch": None})))
    (forward, backward), (once, same) = (m.passes(8, 64, ASSUMED) for m in (cached, plain))
    assert (forward, backward) == (pytest.approx(2 * once), same)
    (many, *_), (one, *_) = (m.collectives(8, 8, 0) for m in (cached, plain))
    assert (many.what, many.bytes) == ("gradients", 4 * one.bytes)


def test_the_batch_must_divide() -> None:
    model = ScalingModel(load(PretrainConfig, Path(TINY), ["global_batch=36"]))
    with pytest.raises(ConfigError, match=r"36 pairs does not divide over 8 GPUs; choose global_batch=32"):
        model.weak((8,), ASSUMED)
    assert [one.ranks for one in model.strong((8, 12), ASSUMED)] == [12]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "scaling.png"
    arguments = ["--config", TINY, "global_batch=64", "--gpus", "32,8", "--peak", "100", "--plot", str(plot)]
    run(parse(arguments))
    shown = capsys.readouterr().out
    assert "a model; nothing was run" in shown
    assert "40% of 100 TFLOP/s (--peak) at any batch" in shown
    assert "8 GPUs a node, 300 GB/s within it, 50 GB/s out of it (all cards), 1 and 5 µs a hop" in shown
    assert "weak scaling: 8 pairs a GPU" in shown and "strong scaling: 64 pairs in all" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mfu", "40"], "--mfu is 40, it must be at most 1"),
        (["--gpus", "8,x"], "'x' is no number of GPUs"),
        (["--inter-bandwidth", "0"], "0 must be above 0"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err
