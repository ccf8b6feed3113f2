"""Real ranks, real DeepSpeed: the same curve at every ZeRO stage and number of ranks, and across a kill."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from promptmeup.config import load
from promptmeup.models.saving import load_model
from promptmeup.tracking import journal
from promptmeup.training.checkpoint import complete
from promptmeup.training.label import LabelRunConfig, label
from promptmeup.training.settings import PretrainConfig
from tests.integration.conftest import tiny_config, train_on_rank
from tests.support.ranks import RankError, run_ranks
from tests.support.real_data import ROOT

STEPS = 20
LOSSES = ("loss", "loss/image_text", "loss/object_entity", "loss/image_relation", "loss/matching")


def curve(run: Path) -> dict[int, dict[str, float]]:
    steps = journal.metrics(run / "journal.jsonl")
    timed = ("pairs_per_second", "tflops", "data_wait")
    return {number: {k: v for k, v in values.items() if k not in timed} for number, values in steps.items()}


@pytest.fixture(scope="session")
def reference(news_world: Path) -> Path:
    run = news_world / "reference"
    config = tiny_config(news_world, f"out={run}", f"steps={STEPS}", "engine.zero_stage=0")
    assert run_ranks(train_on_rank, 1, config, timeout=120) == [True]
    return run


def test_reference_learns(reference: Path) -> None:
    steps = curve(reference)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for name in LOSSES:
        assert all(values[name] > 0 for values in steps.values()), name
    first, last = (sum(steps[i]["loss"] for i in part) for part in (range(1, 6), range(16, 21)))
    assert last < first
    model = load_model(reference / "model")
    assert model.config.fusion
    assert (reference / "best" / "model.json").exists()
    assert all(
        0 < values[f"{name}temperature"] < 0.5 for values in steps.values() for name in ("", "object_")
    )
    lines = journal.read(reference / "journal.jsonl")
    (labels,) = (line for line in lines if line["event"] == "labels")
    assert labels["labels/objects_entropy"] > 0 and 0 <= labels["labels/objects_agreement_top5"] <= 1
    (evaluation,) = (line for line in lines if line["event"] == "evaluation")
    assert evaluation["uniformity_image"] < 0 and 0 < evaluation["alignment"] < 4
    assert (reference / "config.yaml").exists() and (reference / "environment.json").exists()


def test_ranks_that_see_their_own_rows_alone_have_another_curve(news_world: Path, reference: Path) -> None:
    run = news_world / "ranks_alone"
    config = tiny_config(news_world, f"out={run}", "steps=4", "loss.negatives=rank")
    assert run_ranks(train_on_rank, 2, config, timeout=180) == [True] * 2
    expected, first = curve(reference)[1], curve(run)[1]
    # the same weights and pairs: half of the negatives are easier to tell apart, and matching knows none
    assert first["loss/image_text"] < expected["loss/image_text"] - 0.1
    assert first["loss/matching"] == pytest.approx(expected["loss/matching"], rel=1e-5)
    assert len(curve(run)) == 4


@pytest.mark.parametrize(
    ("stage", "resumed_at", "precision"),
    [(0, 0, "fp32"), (1, 1, "fp32"), (2, 3, "fp32"), (3, 0, "fp32"), (0, 1, "bf16"), (3, 3, "bf16")],
)
def test_fixed_temperatures_stay(
    news_world: Path, tmp_path: Path, stage: int, resumed_at: int, precision: str
) -> None:
    """To the last bit, through training, a checkpoint, another layout and saving, from a teacher that learnt one."""
    common = (
        f"out={tmp_path}",
        f"start_from={news_world}/teacher/model",
        "model.learn_temperature=false",
        "model.temperature=0.001",
        "optim.lr=0.01",
        f"engine.precision={precision}",
    )
    for steps, at in ((2, stage), (14, resumed_at)):
        config = tiny_config(news_world, *common, f"steps={steps}", f"engine.zero_stage={at}")
        assert run_ranks(train_on_rank, 2, config, timeout=180) == [True] * 2
    fixed = torch.tensor([0.001])
    names = ("temperature", "object_temperature", "relation_temperature")
    found = curve(tmp_path)
    assert len(found) == 14
    assert {values[name] for values in found.values() for name in names} == {fixed.item()}
    # it is at an end of its range, where it was put
    warnings = [
        line["text"] for line in journal.read(tmp_path / "journal.jsonl") if line["event"] == "warning"
    ]
    assert not any("temperature has reached an end" in text for text in warnings)
    model = load_model(tmp_path / "model")
    assert all(torch.equal(getattr(model.heads, name).value, fixed) for name in names)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_same_curve(news_world: Path, reference: Path, stage: int, ranks: int) -> None:
    run = news_world / f"stage{stage}ranks{ranks}"
    config = tiny_config(news_world, f"out={run}", f"steps={STEPS}", f"engine.zero_stage={stage}")
    assert run_ranks(train_on_rank, ranks, config, timeout=180) == [True] * ranks
    expected, found = curve(reference), curve(run)
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        for name in LOSSES:
            assert found[step][name] == pytest.approx(values[name], rel=1e-5, abs=1e-5), (step, name)
    # the exported weights are whole, also where they were sharded
    a, b = load_model(reference / "model").state_dict(), load_model(run / "model").state_dict()
    assert all(a[name].shape == b[name].shape for name in a)
    assert max((a[name].float() - b[name].float()).abs().max().item() for name in a) < 1e-3


def _die_at_step(world: Any, config: PretrainConfig, step: int, how: int) -> bool:
    """Train, and send this rank the signal `how` once the journal holds `step`."""
    from promptmeup.training import pretrain

    original = pretrain.train_step
    calls = [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == step and world.rank == world.size - 1:
            os.kill(os.getpid(), how)
        return original(*args, **kwargs)

    pretrain.train_step = dying
    return pretrain.train(config, world) == 0


@pytest.mark.parametrize(("stage", "ranks"), [(1, 2), (3, 2), (0, 1)])
def test_killed_and_resumed(news_world: Path, tmp_path: Path, stage: int, ranks: int) -> None:
    """SIGKILL between two checkpoints, then SIGTERM, then to the end: the uninterrupted curve, bit by bit."""
    common = (
        f"engine.zero_stage={stage}",
        "steps=14",
        "save_every=4",
        "model.text.dropout=0.1",
        "evaluate_every=5",
    )
    whole = tiny_config(news_world, f"out={tmp_path}/whole", *common)
    assert run_ranks(train_on_rank, ranks, whole, timeout=120) == [True] * ranks

    broken = tiny_config(news_world, f"out={tmp_path}/broken", *common)
    with pytest.raises(RankError):
        run_ranks(_die_at_step, ranks, broken, 7, signal.SIGKILL, timeout=120)
    assert complete(tmp_path / "broken")[-1] == "step-00000004"
    # resumes at 4; the signal reaches one rank before its 6th step, all stop together after step 10
    assert run_ranks(_die_at_step, ranks, broken, 6, signal.SIGTERM, timeout=120) == [False] * ranks
    assert complete(tmp_path / "broken")[-1] == "step-00000010"
    assert run_ranks(train_on_rank, ranks, broken, timeout=120) == [True] * ranks

    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    evaluated, expected = (
        journal.metrics(tmp_path / run / "journal.jsonl", event="evaluation") for run in ("broken", "whole")
    )
    assert list(evaluated) == [5, 10, 14], "the signal came before the evaluation that was due with its step"
    assert evaluated == expected
    assert complete(tmp_path / "broken") == ["step-00000012", "step-00000014"]
    # a finished run that is started again has nothing to do
    assert run_ranks(train_on_rank, ranks, broken, timeout=120) == [True] * ranks
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def _label_anew(world: Path, target: Path) -> None:
    """Copy the packed world, labelled anew with another temperature."""
    shutil.copytree(world / "packed", target / "packed")
    shutil.rmtree(target / "packed/train/labels")
    settings = [f"teacher={world}/teacher/model", f"splits=[{target}/packed/train]", "temperature=0.004"]
    label(load(LabelRunConfig, ROOT / "configs/label/tiny.yaml", settings))


def test_resume_refuses_what_changed(news_world: Path, tmp_path: Path) -> None:
    config = tiny_config(news_world, f"out={tmp_path}/run", "steps=2")
    assert run_ranks(train_on_rank, 1, config, timeout=120) == [True]
    _label_anew(news_world, tmp_path)
    other_labels = tiny_config(tmp_path, f"out={tmp_path}/run", "steps=4")
    with pytest.raises(RankError, match=r"labels was '\w+-\w+' and is '\w+-\w+'"):
        run_ranks(train_on_rank, 1, other_labels, timeout=120)
    other_seed = tiny_config(news_world, f"out={tmp_path}/run", "steps=4", "seed=1")
    with pytest.raises(RankError, match="data order"):
        run_ranks(train_on_rank, 1, other_seed, timeout=120)
