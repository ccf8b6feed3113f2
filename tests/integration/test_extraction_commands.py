"""Fine-tuning, evaluating and predicting as commands: all three say the same of the same sentences."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.extraction_models import save_bert
from tests.support.real_data import ROOT


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(k),
            "words": [*["so"] * (k % 3), ["Ada", "Norwood"][k % 2], "was", "there"],
            "tags": [*["O"] * (k % 3), ["B-PER", "B-LOC"][k % 2], "O", "O"],
            "image": "photo.jpg" if k % 4 else None,
        }
        for k in range(number)
    ]


@pytest.mark.slow
def test_fine_tune_evaluate_predict(tmp_path: Path) -> None:
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "photo.jpg")
    for name, number in (("train", 32), ("val", 12)):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows(number))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    data = ["data.kind=jsonl", "data.task=entities", f"data.root={tmp_path}"]
    data += ["data.files={train: train.jsonl, val: val.jsonl}"]
    run, bert = tmp_path / "run", save_bert(tmp_path / "bert")
    vision = "{kind: transformers, weights: random, image_size: 32, hidden: 32, layers: 1, heads: 2}"
    settings = ["data.splits=[val]", "data.workers=0", "epochs=6", "batch=8", "optim.lr=3e-3"]
    finish(
        start(
            "launch/finetune.py", *data, *settings, f"model={bert}", f"encoders.vision={vision}",
            "tracking.uri=null", f"out={run}",
        )
    )  # fmt: skip

    predictions = tmp_path / "predictions.jsonl"
    commands = (
        start("launch/evaluate.py", f"model={run}/best", *data, "split=val"),
        start(
            "launch/predict.py", "--model", str(run / "best"), "--input", str(tmp_path / "val.jsonl"),
            "--output", str(predictions), "--batch", "5",
        ),
    )  # fmt: skip
    shown, silent = map(finish, commands)
    report = (run / "seed-1" / "predictions-val.jsonl").read_bytes()
    folder = run / f"evaluation-{tmp_path.name}-val"
    assert (folder / "predictions-val.jsonl").read_bytes() == report
    assert (folder / "result-val.json").read_bytes() == (run / "seed-1" / "result-val.json").read_bytes()
    assert "entities, in percent" in shown and not silent

    written = [json.loads(line) for line in report.decode().splitlines()]
    predicted = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert sum(len(line["entities"]) for line in written) > 6
    for line, own, row in zip(written, predicted, rows(12), strict=True):
        assert own.items() >= row.items()
        assert own["has_image"] == line["has_image"] == (row["image"] is not None)
        assert [(*e["words"], e["type"]) for e in own["entities"]] == [
            (e["start"], e["end"], e["type"]) for e in line["entities"]
        ]
        assert [e["score"] for e in own["entities"]] == pytest.approx(
            [e["score"] for e in line["entities"]], abs=2e-6
        )
