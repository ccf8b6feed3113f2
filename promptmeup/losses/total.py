"""All losses of a step, from the student's features, as means over the world."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from promptmeup.config import Config
from promptmeup.losses.contrast import Pair, contrast
from promptmeup.losses.exchange import Alone, Columns, Exchange
from promptmeup.losses.image_text import IdPair, MeanOver, SameImage
from promptmeup.losses.matching import matching
from promptmeup.losses.soft_cross_entropy import soft_cross_entropy
from promptmeup.losses.soft_label import LabelPair, hardest, spread
from promptmeup.records import Banks, Batch, Features, SoftLabels, Term, is_per_row


class LossWeights(Config):
    """Weight of each loss in the total; 0 switches it off, and it is not computed."""

    image_text: float = Field(default=1.0, ge=0)
    object_entity: float = Field(default=1.0, ge=0)
    image_relation: float = Field(default=1.0, ge=0)
    matching: float = Field(default=1.0, ge=0)


class LossConfig(Config):
    """What the student is trained on."""

    weights: LossWeights = LossWeights()
    same_image: SameImage = "positive"
    """true matches besides a row's own pair: further positives, left out of the denominator, or (paper) negatives"""
    image_text_mean: MeanOver = "matched"
    """what the image-text sum is divided by: the pairs that have a positive, or (paper) all"""
    negatives: Literal["world", "rank"] = "world"
    """whose rows each rank's losses are means over and its contrasts find negatives in: of the whole world, or of the
    rank alone, as without a gather; what is trained on and reported then is the mean over the ranks"""
    hard_labels: bool = False
    """train on the teacher's most probable prompt alone instead of its distribution"""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if not any(self.weights.model_dump().values()):
            raise ValueError("every weight is 0, so there is nothing to train: set one above 0")
        return self


@dataclass(frozen=True)
class Losses:
    """What a step goes on with."""

    local: Tensor
    """for backward, float64; the average of its gradient over the ranks is that of the world's weighted total"""
    reported: dict[str, Tensor]
    """float64 scalars, equal on all ranks, no gradient: loss/total, loss/NAME, and the metrics by name"""
    sound: Tensor
    """bool scalar, equal on all ranks: the total and all features are finite, also those that count nowhere"""


def rows_not_finite(features: Features) -> Tensor:
    """Return which rows [B] have a feature that is NaN or infinite: their gradient would be, counted or not."""
    wrong_B = torch.zeros(len(features.image_BD), dtype=torch.bool, device=features.image_BD.device)
    for name, value in features.tensors().items():
        if is_per_row(name) and value.is_floating_point():
            wrong_B |= ~value.detach().isfinite().flatten(1).all(1)
    return wrong_B


def seen_by(config: LossConfig, exchange: Exchange) -> Exchange:
    """Return the ranks whose rows a rank's losses see."""
    return Alone() if config.negatives == "rank" else exchange


def captions_to_send(batch: Batch, exchange: Exchange, *, dtype: torch.dtype | None = None) -> Columns:
    """Return what takes a batch's captions to all ranks; hand it their vectors as soon as they are there.

    Args:
        batch: this rank's; of the same size on every rank.
        exchange: the ranks that shall see them (`seen_by`).
        dtype: of the vectors on the way and of the products of the image-text contrast; None: as they are.
    """
    return Columns(exchange, torch.stack([batch.image_ids_B, batch.caption_ids_B], dim=1), dtype=dtype)


def _label_metrics(
    name: str, labels: SoftLabels, *, keep_N: Tensor, present_N: Tensor, num_prompts: int
) -> dict[str, Term]:
    """Return what tells a teacher that says little: mean entropy in nats, share kept, top prompt's share.

    The top share is each rank's own (an upper bound of the world's), so that no histogram is exchanged.
    """
    probs_NT, others_N = spread(labels, num_prompts=num_prompts)
    num_others = num_prompts - probs_NT.shape[1]
    entropy_N = -probs_NT.xlogy(probs_NT).sum(1) - num_others * others_N.xlogy(others_N)
    kept = keep_N.sum().double()
    votes_K = torch.zeros(num_prompts, device=keep_N.device).index_add(0, labels.ids[:, 0], keep_N.float())
    return {
        f"{name}_label_entropy": Term(entropy_N.where(keep_N, 0).sum(), kept),
        f"{name}_label_kept": Term(kept, present_N.sum().double()),
        f"{name}_label_top_share": Term(votes_K.max(), kept),
    }


def _label_loss(
    name: str,
    x_ND: Tensor | None,
    *,
    logits_NK: Tensor | None,
    labels: SoftLabels,
    present_N: Tensor,
    bank_KD: Tensor,
    temperature: Tensor | None,
    hard: bool,
) -> tuple[LabelPair | Term, dict[str, Term]]:
    """Return a contrast with prompts, or a classifier's loss, and its labels' metrics; labels are flat, [N, T]."""
    keep_N = present_N & labels.keep
    metrics = _label_metrics(name, labels, keep_N=keep_N, present_N=present_N, num_prompts=len(bank_KD))
    trained_on = hardest(labels) if hard else labels
    if logits_NK is not None:
        assert logits_NK.shape[1] == len(bank_KD), "a classifier of another number of prompts"
        return soft_cross_entropy(logits_NK, trained_on, keep_N), metrics
    assert x_ND is not None and temperature is not None, f"{name} labels without fused features"
    pair = LabelPair(x_ND, bank_KD=bank_KD, labels=trained_on, keep_N=keep_N, temperature=temperature)
    return pair, metrics


def _flat(labels: SoftLabels) -> SoftLabels:
    num_kept = labels.ids.shape[-1]
    return SoftLabels(
        labels.ids.reshape(-1, num_kept), labels.probs.reshape(-1, num_kept), labels.keep.flatten()
    )


def _flat_rows(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.flatten(0, 1)


def total_loss(
    features: Features,
    columns: Columns,
    batch: Batch,
    banks: Banks | None,
    config: LossConfig,
    exchange: Exchange,
) -> Losses:
    """Return the weighted total of every loss that has a weight; one sum over the ranks carries all of them.

    Where each rank's losses see its own rows alone, that sum carries no more than what is reported.

    The features, labels and banks that these losses need must be there; a run checks it when it is built. A
    loss or metric without a valid row in the world is exactly 0, with no gradient.

    Args:
        features: of this rank's batch.
        columns: the captions, sent (`captions_to_send`).
        batch: this rank's.
        banks: the prompts, on the features' device; None where no loss needs them.
        config: weights and choices.
        exchange: the ranks, all of them.
    """
    among = seen_by(config, exchange)
    assert columns.exchange.size == among.size, "captions sent to other ranks than the losses see"
    weights = {name: weight for name, weight in config.weights.model_dump().items() if weight > 0}
    pairs: dict[str, Pair] = {}
    metrics: dict[str, Term] = {}
    if "image_text" in weights:
        pairs["image_text"] = image_text = IdPair(
            features.image_BD,
            columns=columns,
            temperature=features.temperature,
            same_image=config.same_image,
            mean_over=config.image_text_mean,
        )
    labelled: dict[str, LabelPair | Term] = {}
    if "object_entity" in weights:
        assert banks is not None, "object_entity without prompts"
        assert batch.object_labels is not None, "object_entity without soft labels"
        assert features.object_mask_BM is not None, "object_entity without fused features"
        labelled["object_entity"], found = _label_loss(
            "object",
            _flat_rows(features.object_BMD),
            logits_NK=_flat_rows(features.object_logits_BMK),
            labels=_flat(batch.object_labels),
            present_N=features.object_mask_BM.flatten(),
            bank_KD=banks.entities_KD,
            temperature=features.object_temperature,
            hard=config.hard_labels,
        )
        metrics |= found
    if "image_relation" in weights:
        assert banks is not None, "image_relation without prompts"
        assert batch.image_labels is not None, "image_relation without soft labels"
        labelled["image_relation"], found = _label_loss(
            "relation",
            features.relation_BD,
            logits_NK=features.relation_logits_BK,
            labels=batch.image_labels,
            present_N=torch.ones_like(batch.image_labels.keep),
            bank_KD=banks.relations_KD,
            temperature=features.relation_temperature,
            hard=config.hard_labels,
        )
        metrics |= found
    pairs |= {name: loss for name, loss in labelled.items() if isinstance(loss, LabelPair)}
    terms = {name: loss for name, loss in labelled.items() if isinstance(loss, Term)}
    if "matching" in weights:
        assert features.matching_logits_B2 is not None, "matching without fused features"
        terms["matching"], accuracy = matching(features.matching_logits_B2, matched_B=batch.matched_B)
        metrics["matching_accuracy"] = accuracy

    num_wrong = rows_not_finite(features).sum().double()
    watched = [*terms.values(), *metrics.values(), Term(num_wrong, num_wrong)]
    riders = torch.stack([torch.stack([t.sum.detach().double(), t.count.double()]) for t in watched])
    means, totals = contrast(tuple(pairs.values()), exchange=among, riders=riders)
    counted = dict(zip([*terms, *metrics, "not_finite"], totals, strict=True))
    losses = dict(zip(pairs, means, strict=True))
    values = {name: mean.detach() for name, mean in losses.items()}
    for name, term in terms.items():
        total, count = counted.pop(name)
        # the engine averages over ranks, and the sum of all that are seen is what the count belongs to
        losses[name] = among.size * term.sum.double() / count.clamp(min=1)
        values[name] = total / count.clamp(min=1)
    if "image_text" in pairs:
        assert image_text.accuracy is not None
        counted["contrastive_accuracy"] = torch.stack([image_text.accuracy.sum, image_text.accuracy.count])
    if config.negatives == "rank":
        own = [torch.stack(list(values.values())), *counted.values()]
        summed, *totals_of_metrics = torch.split(exchange.sum(torch.cat(own)), [len(part) for part in own])
        values = dict(zip(values, summed / exchange.size, strict=True))
        counted = dict(zip(counted, totals_of_metrics, strict=True))
    wrong, _ = counted.pop("not_finite")
    reported = {f"loss/{name}": value for name, value in values.items()}
    reported |= {name: total / count.clamp(min=1) for name, (total, count) in counted.items()}
    local = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return Losses(local, {"loss/total": total} | reported, total.isfinite() & (wrong == 0))
