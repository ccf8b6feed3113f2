"""What photos and what pre-training are worth in fine-tuning, on the made-up world of `make quickstart`.

Its sentences come twice in the same words, with a photo for each reading, so that words alone decide nothing
(quickstart/corpus/extraction/ceiling.json has the best that anybody can score without the photo). All of the training
sentences with the photo and without it, from the pre-trained student; and half of them from the student, from the
teacher's encoders with a new fusion half, and from encoders that have learnt nothing. The three have one architecture,
equal epochs and learning rates, and three seeds, each of which draws a subset of its own. Intervals: paired bootstrap
over sentences and seeds. Of relations all labels count, "None" too: it is right in half of the sentences.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from promptmeup.config import load
from promptmeup.extraction.bootstrap import Comparison, paired_bootstrap
from promptmeup.extraction.finetune import finetune
from promptmeup.extraction.predictions import Predictions, read_predictions
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.models.alignment import build_model
from promptmeup.models.saving import describe, load_matching, load_model, load_saved_tokenizer, save_model
from promptmeup.training.settings import PretrainConfig
from tests.benchmarks import harness

QUICKSTART = Path("quickstart")
STUDENT, TEACHER = QUICKSTART / "runs/student/best", QUICKSTART / "runs/teacher/best"
SEEDS = (1, 2, 3)
LR = 5e-4
FRACTION = 0.5
EPOCHS = {1.0: 10, FRACTION: 12}
BATCH = {1.0: 32, FRACTION: 8}
"""few sentences need many steps: a quarter of them in batches of 32 taught nobody to look at the photo"""
TASKS = ("entities", "relations")


def measure() -> tuple[Sequence[harness.Row], Mapping[str, float]]:
    """F1 of entities and accuracy of relations on test, with and without photos and pre-training."""
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    ceiling = json.loads((QUICKSTART / "corpus/extraction/ceiling.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = {
            "student": STUDENT,
            "teacher's encoders": folder / "teacher",
            "untrained": folder / "untrained",
        }
        for which in ("teacher's encoders", "untrained"):
            _save_start(starts[which], teacher=TEACHER if which != "untrained" else None)
        for task in TASKS:
            arms = {
                "student, words alone": _arm(folder / task / "words", task, STUDENT, text_only=True),
                "student": _arm(folder / task / "all", task, STUDENT),
            }
            arms |= {
                f"{which}, half": _arm(folder / task / f"low-{number}", task, start, fraction=FRACTION)
                for number, (which, start) in enumerate(starts.items())
            }
            rows += [_row(task, arm, found) for arm, found in arms.items()]
            pairs = {
                "photo": ("student", "student, words alone"),
                "pretraining": ("student, half", "untrained, half"),
                "fusion": ("student, half", "teacher's encoders, half"),
            }
            for key, (first, second) in pairs.items():
                compared = _compare(arms[first], arms[second])
                summary |= {
                    f"{task}_{key}_gain": 100 * compared.difference,
                    f"{task}_{key}_low": 100 * compared.low,
                    f"{task}_{key}_high": 100 * compared.high,
                }
            print(f"{task}: ceiling {json.dumps(ceiling[task])}", flush=True)
    return rows, summary


def _save_start(folder: Path, *, teacher: Path | None) -> None:
    """Save the student's architecture with new weights, its encoders the teacher's where one is given."""
    torch.manual_seed(0)
    config = load(PretrainConfig, Path("configs/pretrain/tiny.yaml")).model
    shapes = {k: v for k, v in describe(load_model(STUDENT)).items() if k.endswith("_width")}
    model = build_model(config, **shapes)
    if teacher is not None:
        load_matching(model, teacher)
    save_model(folder, model, tokenizer=load_saved_tokenizer(STUDENT))


def _arm(
    folder: Path, task: str, start: Path, *, text_only: bool = False, fraction: float = 1.0
) -> dict[str, Predictions]:
    """Fine-tune with all seeds and return their predictions on test."""
    data: dict[str, Any] = {
        "kind": "jsonl",
        "task": task,
        "root": QUICKSTART / "corpus/extraction",
        "files": {split: f"{task}/{split}.jsonl" for split in ("train", "val", "test")},
        "text_only": text_only,
        "fraction": fraction,
        "max_tokens": 40,
        "workers": 0,
    }
    optim = {"lr": LR, "vision_lr": LR, "head_lr": 1e-3, "crf_lr": 1e-2, "warmup": 0.1}
    config = FinetuneConfig.model_validate(
        {
            "out": folder,
            "model": str(start),
            "data": data,
            "optim": optim,
            "tracking": {"uri": None, "log_every": 1_000_000},
            "epochs": EPOCHS[fraction],
            "batch": BATCH[fraction],
            "seeds": SEEDS,
        }
    )
    finetune(config)
    return {
        f"seed {seed}": read_predictions(folder / f"seed-{seed}/predictions-test.jsonl") for seed in SEEDS
    }


def _compare(first: Mapping[str, Predictions], second: Mapping[str, Predictions]) -> Comparison:
    """F1 of entities; of relations F1 with every label counted, which is accuracy."""
    return paired_bootstrap(first, second, none=None)


def _row(task: str, arm: str, found: Mapping[str, Predictions]) -> harness.Row:
    scores = [100 * f1 for f1 in _compare(found, found).first.files.values()]
    return {
        "task": task,
        "start and data": arm,
        "test": round(fmean(scores), 2),
        "std": round(stdev(scores), 2),
        "seeds": " ".join(f"{score:.1f}" for score in scores),
    }


if __name__ == "__main__":
    harness.run("photos", measure)
