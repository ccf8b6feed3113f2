"""Named entities in the real Twitter-2015, text alone: our fine-tuning and transformers' own recipe.

MiniLM, equal epochs, batches and learning rates. The peer is `AutoModelForTokenClassification` with `Trainer`
(run_ner.py), on whose logits stands pytorch-crf. Both sides take the epoch that is best on dev and are scored on test.
They take turns; seconds are those of training alone. Needs PROMPTMEUP_REAL_DATA (twitter_mner/twitter2015).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptmeup.corpora.twitter import read
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
            labels=labels_of(data, train, none=None),
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
    return finetuned.compared("entity", found, seconds, score=_scores)


def _scores(predictions: Sequence[EntityPrediction]) -> dict[str, float]:
    found = entity_scores_of(predictions)
    return {"test F1": 100 * found.default.f1, "strict F1": 100 * found.strict.f1}


if __name__ == "__main__":
    harness.run("entities", measure)
