"""A model over many examples: its predictions, in the order of the examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.extraction.batches import ExtractionBatch, Row, Rows, load
from promptmeup.extraction.examples import Example
from promptmeup.extraction.predictions import Entity, EntityPrediction, RelationPrediction
from promptmeup.models.crf import ConditionalRandomField
from promptmeup.records import Post, RelationInstance, TaggedSentence

Prediction = EntityPrediction | RelationPrediction
_RULED_OUT = -1e30
_PICTURES = ("pixel_values", "crop_values")


def model_inputs(batch: ExtractionBatch, vision: Any | None) -> dict[str, Tensor]:
    """Return the model's arguments with photos as its vision encoder wants them: float32, normalised."""
    pictures = {
        name: normalise(batch.inputs[name], mean=vision.mean, std=vision.std)
        for name in _PICTURES
        if vision is not None and name in batch.inputs
    }
    return batch.inputs | pictures


@torch.no_grad()
def outputs(
    model: Any,
    rows: Rows,
    order: Iterator[list[Row]],
    *,
    vision: Any | None,
    device: torch.device,
    workers: int = 0,
) -> Iterator[tuple[ExtractionBatch, dict[str, Tensor], Any]]:
    """Yield the batches of `order`, each with the model's arguments and what it returns without labels.

    Args:
        model: the model in evaluation mode, or what wraps it.
        vision: the model's vision encoder, for the normalisation of photos.
    """
    for batch in load(rows, order, workers=workers, pin=device.type == "cuda"):
        inputs = model_inputs(batch.to(device), vision)
        inputs.pop("labels", None)
        yield batch, inputs, model(**inputs)


def has_images(batch: ExtractionBatch) -> list[bool]:
    """Return for each row whether the model saw a photo."""
    if "image_mask" not in batch.inputs:
        return [False] * len(batch.rows)
    seen: list[bool] = batch.inputs["image_mask"].tolist()
    return seen


@torch.no_grad()
def predict(
    model: Any,
    examples: Sequence[Example],
    *,
    rows: Rows,
    order: Iterator[list[Row]],
    labels: Sequence[str],
    vision: Any | None,
    crf: ConditionalRandomField | None,
    device: torch.device,
    workers: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> list[tuple[int, Prediction]]:
    """Return (position, prediction) of the examples in `order`, by position; those of weight 0 are left out.

    Args:
        model: the model, or what wraps it; left in the mode it was in.
        rows: of `examples`.
        vision: the model's vision encoder, for the normalisation of photos.
        crf: gives each entity its probability; None: 0 is written, for evaluations in between.
        advance: told how many were done.
    """
    was_training = model.training
    model.eval()
    found: list[tuple[int, Prediction]] = []
    for batch, inputs, output in outputs(model, rows, order, vision=vision, device=device, workers=workers):
        seen = has_images(batch)
        of_batch = [examples[row] for row in batch.rows]
        if of_batch[0].task == "relations":
            made: Sequence[Prediction] = _relations(of_batch, output.logits, labels, seen)
        else:
            tagged = _entities(of_batch, output.tags.cpu(), labels, seen)
            made = tagged
            if crf is not None:
                made = _with_scores(tagged, of_batch, output.logits, inputs["word_mask"], crf)
        weights = batch.weights_B.tolist()
        kept = [
            pair for pair, weight in zip(zip(batch.rows, made, strict=True), weights, strict=True) if weight
        ]
        found += kept
        advance(len(kept))
    model.train(was_training)
    return sorted(found, key=lambda pair: pair[0])


def _relations(
    examples: Sequence[Example], logits_BR: Tensor, labels: Sequence[str], seen: Sequence[bool]
) -> list[Prediction]:
    scores_B, ids_B = logits_BR.float().softmax(-1).max(-1)
    made: list[Prediction] = []
    for example, score, label, has_image in zip(
        examples, scores_B.tolist(), ids_B.tolist(), seen, strict=True
    ):
        post = example.post
        assert isinstance(post, RelationInstance)
        made.append(
            RelationPrediction(
                id=post.id,
                words=post.words,
                head=(post.head.start, post.head.end),
                tail=(post.tail.start, post.tail.end),
                gold=post.relation if example.target else None,
                relation=labels[label],
                score=score,
                has_image=has_image,
            )
        )
    return made


def _entities(
    examples: Sequence[Example], tags_BL: Tensor, labels: Sequence[str], seen: Sequence[bool]
) -> list[EntityPrediction]:
    made = []
    for example, tags_L, has_image in zip(examples, tags_BL.tolist(), seen, strict=True):
        tags = tuple(labels[tags_L[place]] if place >= 0 else "O" for place in example.places)
        made.append(
            EntityPrediction(
                id=example.post.id,
                words=example.post.words,
                gold=_gold(example.post),
                tags=tags,
                entities=tuple(Entity(start, end, kind, 0.0) for start, end, kind in spans(tags)),
                has_image=has_image,
            )
        )
    return made


def _gold(post: Post) -> tuple[str, ...] | None:
    return post.tags if isinstance(post, TaggedSentence) else None


def spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of each entity in tags that keep to BIO."""
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((place, place + 1, tag[2:]))
        elif tag.startswith("I-"):
            start, _, kind = found.pop()
            found.append((start, place + 1, kind))
    return found


def _with_scores(
    made: Sequence[EntityPrediction],
    examples: Sequence[Example],
    emissions_BLT: Tensor,
    word_mask_BL: Tensor,
    crf: ConditionalRandomField,
) -> list[Prediction]:
    """Give each entity the CRF's probability of exactly it: that its words have its tags and it ends there."""
    emissions_BLT = emissions_BLT.float()
    places = [(row, entity) for row, prediction in enumerate(made) for entity in prediction.entities]
    whole_B = crf.log_partition(emissions_BLT, word_mask_BL)
    scores: list[float] = []
    if places:
        rows_E = torch.tensor([row for row, _ in places], device=emissions_BLT.device)
        held_ELT = emissions_BLT[rows_E]
        for number, (row, entity) in enumerate(places):
            _hold(held_ELT[number], entity, examples[row].places, crf.labels)
        parts_E = crf.log_partition(held_ELT, word_mask_BL[rows_E])
        scores = (parts_E - whole_B[rows_E]).exp().clamp(max=1).tolist()
    left = iter(scores)
    return [
        replace(
            prediction, entities=tuple(replace(entity, score=next(left)) for entity in prediction.entities)
        )
        for prediction in made
    ]


def _hold(emissions_LT: Tensor, entity: Entity, places: Sequence[int], labels: Sequence[str]) -> None:
    """Rule out, in place, all tags but the entity's on its words, and its continuation behind them."""
    begin, inside = labels.index(f"B-{entity.type}"), labels.index(f"I-{entity.type}")
    for word in range(entity.start, entity.end):
        wanted = begin if word == entity.start else inside
        kept = emissions_LT[places[word], wanted].clone()
        emissions_LT[places[word]] = _RULED_OUT
        emissions_LT[places[word], wanted] = kept
    if entity.end < len(places) and places[entity.end] >= 0:
        emissions_LT[places[entity.end], inside] = _RULED_OUT
