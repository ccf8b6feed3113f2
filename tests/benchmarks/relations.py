"""Relations in the real MNRE (train, val), text alone: our fine-tuning and a plain entity-marker baseline.

MiniLM, equal epochs, batches and learning rates. The peer is transformers' BERT with entity markers, the two start
states and a linear layer (Baldini Soares et al. 2019), trained by `Trainer`. Both are scored on val at the epoch that
is best there, since MNRE's test split is not at hand. The sides take turns. Needs PROMPTMEUP_REAL_DATA (mnre).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptmeup.corpora.mnre import read
from promptmeup.extraction.data import MnreData, labels_of
from promptmeup.extraction.metrics import relation_scores_of
from promptmeup.extraction.predictions import Predictions, RelationPrediction
from promptmeup.models.weights import find
from promptmeup.records import RelationInstance
from tests.benchmarks import harness
from tests.benchmarks.peers import entity_markers, finetuned
from tests.support.real_data import real_data

EPOCHS, SEEDS = 2, (1, 2)
"""an epoch of both sides takes a quarter of an hour of one core"""
NONE = "None"
OURS, PEER = "promptmeup", "transformers, entity markers"


def measure() -> tuple[Sequence[harness.Row], Mapping[str, float]]:
    """F1 without None on MNRE's val split and seconds an epoch, ours and the baseline's."""
    data = MnreData(root=real_data("mnre"))
    train, val = (read(data, split) for split in ("train", "val"))
    found: dict[str, dict[str, Predictions]] = {OURS: {}, PEER: {}}
    seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            own = finetuned.train(
                Path(folder),
                data={"kind": "mnre", "root": data.root},
                split="val",
                epochs=EPOCHS,
                seed=seed,
            )
        peer = entity_markers.train(
            train,
            val,
            encoder=find(finetuned.ENCODER, key="encoder"),
            relations=labels_of(data, train, none=NONE),
            epochs=EPOCHS,
            batch=finetuned.BATCH,
            lr=finetuned.LR,
            head_lr=finetuned.HEAD_LR,
            warmup=finetuned.WARMUP,
            weight_decay=finetuned.WEIGHT_DECAY,
            max_tokens=finetuned.MAX_TOKENS,
            seed=seed,
        )
        found[OURS][f"seed {seed}"] = own.predictions
        epochs = [predictions_of(val, relations) for relations in peer.by_epoch]
        found[PEER][f"seed {seed}"] = max(epochs, key=lambda of: relation_scores_of(of, none=NONE).micro.f1)
        seconds[OURS] += own.epoch_seconds
        seconds[PEER] += peer.epoch_seconds
        print(f"seed {seed} done", flush=True)
    return finetuned.compared("relation", found, seconds, score=_scores, none=NONE)


def _scores(predictions: Sequence[RelationPrediction]) -> dict[str, float]:
    found = relation_scores_of(predictions, none=NONE)
    return {"val F1": 100 * found.micro.f1, "accuracy": 100 * found.accuracy}


def predictions_of(
    instances: Sequence[RelationInstance], relations: Sequence[str]
) -> tuple[RelationPrediction, ...]:
    return tuple(
        RelationPrediction(
            id=row.id,
            words=row.words,
            head=(row.head.start, row.head.end),
            tail=(row.tail.start, row.tail.end),
            gold=row.relation,
            relation=relation,
            score=1.0,
            has_image=False,
        )
        for row, relation in zip(instances, relations, strict=True)
    )


if __name__ == "__main__":
    harness.run("relations", measure)
