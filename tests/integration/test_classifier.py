"""The paper's losses in a run: classifiers over prompts, in one batch and in micro-batches."""

from pathlib import Path

import pytest

from promptmeup.models.saving import load_model
from promptmeup.prompts.bank import load_banks
from promptmeup.shard_format import finished_labels, read_manifest
from tests.integration.conftest import tiny_config, train_on_rank
from tests.integration.test_training import LOSSES, curve
from tests.support.ranks import run_ranks

PAPER = ("model.prompt_head=classifier", "loss.same_image=negative", "loss.image_text_mean=all")


def test_a_run_with_classifiers(news_world: Path, tmp_path: Path) -> None:
    curves = []
    for name, override in (("whole", "micro_batch=null"), ("cached", "micro_batch=3")):
        config = tiny_config(
            news_world, f"out={tmp_path}/{name}", "steps=3", "engine.zero_stage=1", override, *PAPER
        )
        assert run_ranks(train_on_rank, 2, config, timeout=180) == [True, True]
        curves.append(curve(tmp_path / name))
    assert sorted(curves[0]) == [1, 2, 3]
    for step, values in curves[0].items():
        for name in (*LOSSES, "gradient_norm", "temperature"):
            assert values[name] > 0, (step, name)
            assert curves[1][step][name] == pytest.approx(values[name], rel=2e-5, abs=1e-6), (step, name)

    split = news_world / "packed/train"
    corpus = read_manifest(split).fingerprint
    (labels,) = finished_labels(split, corpus=corpus)
    banks = load_banks(labels, corpus=corpus)
    model = load_model(tmp_path / "whole/model")
    assert model.config.prompt_head == "classifier"
    assert model.heads.object[2].out_features == model.num_entities == len(banks.entities_KD)
    assert model.heads.relation[2].out_features == model.num_relations == len(banks.relations_KD)
