"""Named entities in the real Twitter-2015, text alone: our fine-tuning and transformers' own recipe.

MiniLM, equal epochs, batches and learning rates. The peer is `AutoModelForTokenClassification` with `Trainer`
(run_ner.py), on whose logits stands pytorch-crf. Both sides take the epoch that is best on dev and are scored on test.
They take turns; seconds are those of training alone. Needs PROMPTMEUP_REAL_DATA (twitter_mner/twitter2015).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch

from promptmeup.corpora.twitter import read
from promptmeup.extraction.bootstrap import paired_bootstrap
from promptmeup.extraction.data import TwitterData, labels_of
from promptmeup.extraction.metrics import entity_scores_of
from promptmeup.extraction.predictions import EntityPrediction, Predictions
from promptmeup.models.weights import find
from tests.benchmarks import harness
from tests.benchmarks.peers import finetuned, token_classification
from tests.support.real_data import real_data

EPOCHS, SEEDS = 4, (1, 2)
OURS, PEER = "promptmeup", "transformers + pytorch-crf"


def measure() -> tuple[Sequence[harness.Row], Mapping[str, float]]:
    """F1 on Twitter-2015's test split and seconds an epoch, ours and transformers'."""
    data = TwitterData(root=real_data("twitter_mner/twitter2015"))
    train, val, test = (read(data, split) for split in ("train", "val", "test"))
    found: dict[str, dict[str, Predictions]] = {OURS: {}, PEER: {}}
    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            own = finetuned.train(
                Path(folder),
                data={"kind": "twitter", "root": data.root},
                split="test",
                epochs=EPOCHS,
                seed=seed,
            )
        peer = token_classification.train(
            train,
            val,
            test,
            encoder=find(finetuned.ENCODER, key="encoder"),
            labels=labels_of(data, none=None),
            epochs=EPOCHS,
            batch=finetuned.BATCH,
            lr=finetuned.LR,
            head_lr=finetuned.HEAD_LR,
            warmup=finetuned.WARMUP,
            weight_decay=finetuned.WEIGHT_DECAY,
            max_tokens=finetuned.MAX_TOKENS,
            seed=seed,
            crf=True,
        )
        found[OURS][f"seed {seed}"] = own.predictions
        found[PEER][f"seed {seed}"] = tuple(
            EntityPrediction(row.id, row.words, row.tags, tuple(tags), (), has_image=False)
            for row, tags in zip(test, peer.tags, strict=True)
        )
        seconds[OURS] += own.epoch_seconds
        seconds[PEER] += peer.epoch_seconds
        print(f"seed {seed}: dev F1 {own.val_f1:.4f} ours, {max(peer.val_f1):.4f} {PEER}", flush=True)
    rows = []
    for side, predictions in found.items():
        scores = [entity_scores_of(of_seed) for of_seed in predictions.values()]  # type: ignore[arg-type]
        f1 = [100 * score.default.f1 for score in scores]
        spread = harness.spread(seconds[side])
        rows.append(
            {
                "side": side,
                "test F1": round(fmean(f1), 2),
                "std": round(stdev(f1), 2),
                "strict F1": round(100 * fmean(score.strict.f1 for score in scores), 2),
                "s/epoch": spread.median,
                "p25": spread.p25,
                "p75": spread.p75,
                "threads": torch.get_num_threads(),
            }
        )
    compared = paired_bootstrap(found[OURS], found[PEER])
    return rows, {
        "entity_f1": rows[0]["test F1"],
        "entity_f1_difference": 100 * compared.difference,
        "difference_low": 100 * compared.low,
        "difference_high": 100 * compared.high,
        "epoch_vs_transformers": rows[1]["s/epoch"] / rows[0]["s/epoch"],
    }


if __name__ == "__main__":
    harness.run("entities", measure)
