"""What is written down of a model on a split: predictions, scores, pictures, and which labels it was scored on."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from promptmeup.corpora.extraction import Statistics
from promptmeup.extraction.data import Corpus
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
from promptmeup.tracking.console import table

MAIN_SCORES = ("f1", "precision", "recall", "strict_f1", "accuracy")
"""what people look at first"""


def describe_corpus(corpus: Corpus) -> str:
    """Return what its splits hold as a table, to be held beside published numbers, and what is amiss."""
    text = table([_counts(split, found) for split, found in corpus.statistics.items()])
    if not corpus.data.text_only and corpus.statistics["train"].images == 0:
        text += (
            "\nwarning: no photo of the training split is there, so that every sentence goes without one; say where "
            "they lie with data.images, or leave them alone with data.text_only=true"
        )
    return text


def _counts(split: str, found: Statistics) -> dict[str, Any]:
    row: dict[str, Any] = {"split": split, "sentences": found.sentences, "words": found.words}
    if found.relations:
        row |= {"relations": len(found.relations), "overlapping spans": found.overlapping_spans}
    else:
        row |= {"entities": sum(found.entities.values()), **found.entities, "broken I-": found.broken_tags}
    return row | {"photos": found.images, "missing photos": found.missing_images}


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
    labels: Sequence[str],
    none: str | None,
    text_only: bool,
) -> tuple[dict[str, Any], list[Path]]:
    """Write predictions-SPLIT.jsonl, result-SPLIT.json and pictures; return the result and the files.

    The result has the scores, the SHA-256 of the files of labels (two results are comparable only where it is the
    same), how many sentences went without the photo that they name, and labels that the model does not know.

    Args:
        cut_words: words that the model did not see; they are no entities to it.
        labels: tags or relations that the model knows.
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
        "unknown_labels": unknown_labels(statistics, labels),
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


def unknown_labels(statistics: Statistics, labels: Sequence[str]) -> dict[str, int]:
    """Return types or relations of a corpus that the model does not know, and how often they occur: all are missed.

    Args:
        labels: tags or relations that the model knows.
    """
    if statistics.relations:
        return {name: count for name, count in statistics.relations.items() if name not in labels}
    known = {label[2:] for label in labels}
    return {name: count for name, count in statistics.entities_lenient.items() if name not in known}


def summary_row(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a row for a table: what several models scored on one split on average, in percent."""
    first = results[0]
    used = first["images"]["sentences_with_image"] if first["images"]["used"] else 0
    scores = {name: spread([result[name] for result in results]) for name in MAIN_SCORES if name in first}
    return {
        "split": first["split"],
        "sentences": first["sentences"],
        "without photo": first["sentences"] - used,
        **{name: percent(found) for name, found in scores.items()},
    }


def labels_line(result: dict[str, Any]) -> str:
    """Return which labels a result is about."""
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in result["labels_sha256"].items())
    return f"labels of {result['split']} (SHA-256): {digests}"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample standard deviation (0 for one value), and the values."""
    return {
        "mean": round(fmean(values), 6),
        "std": round(stdev(values), 6) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def percent(found: dict[str, Any]) -> str:
    """Return "71.2 ± 0.4" of a spread of fractions; without ± where there is one value."""
    text = f"{100 * found['mean']:.2f}"
    return text if len(found["values"]) == 1 else f"{text} ± {100 * found['std']:.2f}"
