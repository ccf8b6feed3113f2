"""The whole chain of a study, from the world to the scores of a fine-tuned student, with models of seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from promptmeup.study.collect import place
from promptmeup.study.plan import make_plan
from promptmeup.study.settings import StudyConfig
from tests.integration.conftest import TINY
from tests.integration.test_study import run
from tests.support.real_data import ROOT
from tests.support.study_chain import configured, content, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNTRACKED = "tracking.uri=null"


def whole_chain() -> dict[str, Any]:
    """Return the quickstart's chain with a few steps of the smallest models, the student's on two ranks."""
    configs = ROOT / "configs"
    trained = [*TINY, "data.train={packed}/train", "data.val={packed}/val", "seed={seed}", "out={self}"]
    return {
        "stages": {
            "world": {
                "command": "synthesize",
                "set": [
                    *("out={self}", "seed={seed}", "num_train_images=40", "num_val_images=12"),
                    "extraction={num_train: 12, num_val: 6, num_test: 10}",
                ],
            },
            "packed": {
                "command": "pack",
                "config": str(configs / "pack/synthetic.yaml"),
                "set": ["corpus.root={world}", "out={self}", "processes=1"],
            },
            "teacher": {
                "command": "pretrain",
                "config": str(configs / "pretrain/teacher_tiny.yaml"),
                "set": [*trained, "steps=3"],
            },
            "labelled": {
                "command": "label",
                "config": str(configs / "label/tiny.yaml"),
                "set": ["teacher={teacher}/model", "splits=[{self}/train]", "temperature=0.003"],
                "link": {"train": "{packed}/train"},
            },
            "student": {
                "command": "pretrain",
                "config": str(configs / "pretrain/tiny.yaml"),
                "set": [*trained, "data.train={labelled}/train", "steps=3"],
                "ranks": 2,
            },
            "entities": {
                "command": "finetune",
                "config": str(configs / "finetune/tiny.yaml"),
                "set": [
                    *("out={self}", "model={student}", "data.root={world}/extraction", "seeds=[{seed}]"),
                    *("epochs=1", UNTRACKED),
                ],
            },
        },
        "measures": {
            "entities": {"kind": "entities", "file": "{entities}/seed-{seed}/predictions-test.jsonl"}
        },
        "ceiling": "{world}/extraction/ceiling.json",
        "journal": "{student}/journal.jsonl",
    }


def test_the_whole_chain(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    arms = [
        "{name: all losses}",
        '{name: without matching, change: {student: ["loss.weights.matching=0"]}}',
    ]

    def made(*overrides: str) -> StudyConfig:
        given = [f"arms=[{', '.join(arms)}]", "baseline=all losses", "seeds=[1]", f"tracking.uri={uri}"]
        return configured(tmp_path, *given, *overrides, chain_of=whole_chain())

    config = made()
    plan = make_plan(config)
    assert len(plan.stages) == 4 + 2 * 2
    packed = plan.cells[0].stages["packed"]
    shown = run(config)
    assert "world begins: all losses, seed 1 and 1 more" in shown
    assert {stage.name: runs(stage) for stage in plan.stages} == dict.fromkeys(plan.chain.stages, 1)
    assert not list(tmp_path.rglob("checkpoints")), "what nobody will go on with takes no space"
    labelled = plan.cells[0].stages["labelled"].folder / "train"
    assert (labelled / "labels").exists() and not (packed.folder / "train/labels").exists()
    assert (labelled / "manifest.json").samefile(packed.folder / "train/manifest.json")
    for cell in plan.cells:
        folder = place(cell, config.out)
        assert (folder / "entities.jsonl").read_bytes() == cell.measures["entities"].read_bytes()
        assert "words" in json.loads((folder / "ceiling.json").read_text())["entities"]
        steps = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [1, 2, 3]
        assert {"loss/total", "loss/image_text"} <= steps[0].keys()
        assert ("loss/matching" in steps[0]) is (cell.arm == "all losses")
    assert "2 of 2 cells are finished" in (config.out / "report.md").read_text()

    def tracked() -> dict[str, str]:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("studies")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        children = [one for one in found if "mlflow.parentRunId" in one.data.tags]
        assert len(found) == 3 and all("entities" in one.data.metrics for one in children)
        return {str(one.info.run_name): one.info.run_id for one in found}

    sent, before = tracked(), content(config.out)
    for _ in range(2):
        assert "2 of them finished" in run(config)
    assert tracked() == sent and content(config.out) == before
    assert sum(runs(stage) for stage in plan.stages) == len(plan.stages)
