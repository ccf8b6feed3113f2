"""What is written down of a model on a split: predictions, scores, pictures, and which labels it was scored on."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from promptmeup.corpora.extraction import Statistics
from promptmeup.extraction.inference import Prediction
from promptmeup.extraction.metrics import (
    EntityScores,
    RelationScores,
    entity_scores_of,
    flat,
    relation_scores_of,
)
from promptmeup.extraction.plots import draw_confusion, draw_scores
from promptmeup.extraction.predictions import EntityPrediction, RelationPrediction, write_predictions
from promptmeup.shard_format import write_json

MAIN_SCORES = ("f1", "precision", "recall", "strict_f1", "accuracy")
"""what people look at first"""


def score(predictions: Sequence[Prediction], *, none: str | None) -> EntityScores | RelationScores:
    """Return the scores of predictions of one kind.

    Raises:
        CorpusError: one has no gold.
    """
    if isinstance(predictions[0], EntityPrediction):
        return entity_scores_of(cast(Sequence[EntityPrediction], predictions))
    return relation_scores_of(cast(Sequence[RelationPrediction], predictions), none=none)


def write_report(
    folder: Path,
    *,
    split: str,
    predictions: Sequence[Prediction],
    statistics: Statistics,
    cut_words: int,
    none: str | None,
    text_only: bool,
) -> tuple[dict[str, Any], list[Path]]:
    """Write predictions-SPLIT.jsonl, result-SPLIT.json and pictures; return the result and the files.

    The result has the scores, the SHA-256 of the files of labels (two results are comparable only where it is the
    same), and how many sentences went without the photo that they name.

    Args:
        cut_words: words beyond the model's length, which were predicted as no entity.
    """
    scores = score(predictions, none=none)
    seen = sum(prediction.has_image for prediction in predictions)
    result = {
        "split": split,
        "sentences": len(predictions),
        **{name: round(value, 6) for name, value in flat(scores).items()},
        "scores": asdict(scores),
        "cut_words": cut_words,
        "images": {
            "used": not text_only,
            "sentences_with_image": 0 if text_only else seen,
            "missing_files": statistics.missing_images,
            "sentences_without_image": statistics.without_image,
            "unreadable": 0 if text_only else len(predictions) - statistics.without_image - seen,
        },
        "broken_tags": statistics.broken_tags,
        "labels_sha256": statistics.sha256,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        folder / f"predictions-{split}.jsonl",
        folder / f"result-{split}.json",
        folder / f"f1-{split}.png",
    ]
    write_predictions(files[0], cast(Any, predictions))
    write_json(files[1], result)
    draw_scores(scores, files[2], title=f"{split}: F1")
    if isinstance(scores, RelationScores):
        files.append(folder / f"confusion-{split}.png")
        draw_confusion(scores, files[-1], title=f"{split}: gold against predicted")
    return result, files
