"""Real tweets with their photos, as people have them on disk: fine-tuned, evaluated, predicted without an edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.extraction_models import save_bert
from tests.support.real_data import ROOT, real_data

TWITTER_KEYS = "data.keys={words: tokens, tags: label, image: image_id}"
VISION = (
    "encoders.vision={kind: transformers, weights: random, image_size: 32, hidden: 32, layers: 1, heads: 2}"
)


def started(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["mnre", "twitter_2015"])
def test_fine_tune_evaluate_predict(tmp_path: Path, name: str) -> None:
    if name == "mnre":
        root = real_data("mnre_image_sample")
        data = ["data.kind=mnre", f"data.root={root}", "data.max_crops=3"]
        photo = next((root / "img_org/test").glob("*.jpg"))
        ask = ("--text", "Ada Byron was born in London", "--head", "Ada Byron", "--tail", "London")
    else:
        root = real_data(f"twitter_image_sample/{name}")
        files = {split: f"texts/{split}/{split}.json" for split in ("train", "dev", "test")}
        files["val"] = files.pop("dev")
        data = [
            "data.kind=jsonl",
            "data.task=entities",
            f"data.root={root}",
            f"data.files={json.dumps(files)}",
        ]
        data += [TWITTER_KEYS, "data.images=images"]
        photo = next((root / "images/test").glob("*.jpg"))
        ask = ("--text", "Ada Byron was born in London")
    model = save_bert(tmp_path / "bert")
    run = tmp_path / "run"
    settings = [
        f"model={model}",
        VISION,
        f"out={run}",
        "epochs=2",
        "batch=2",
        "data.workers=0",
        "tracking.uri=null",
    ]
    assert "test" in started("launch/finetune.py", *data, *settings)
    result = json.loads((run / "result.json").read_text())["splits"]["test"]
    assert result["sentences"] == 5
    assert result["images"]["sentences_with_image"] == 5
    assert result["images"]["missing_files"] == result["images"]["unreadable"] == 0

    of_model = [setting for setting in data if "max_crops" not in setting]
    again = tmp_path / "again"
    started("launch/evaluate.py", f"model={run}/best", *of_model, "split=test", f"out={again}")
    evaluated = json.loads((again / "result-test.json").read_text())
    assert evaluated["f1"] == pytest.approx(result["scores"]["f1"]["mean"], abs=1e-6)
    predictions = (run / "seed-1/predictions-test.jsonl").read_text()
    assert (again / "predictions-test.jsonl").read_text() == predictions

    told = started("launch/predict.py", "--model", str(run / "best"), "--image", str(photo), *ask, "--json")
    answer = json.loads(told)
    assert answer["has_image"]
    assert ("relation" in answer) == (name == "mnre")
