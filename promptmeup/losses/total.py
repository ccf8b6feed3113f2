"""All losses of a step, from the student's features and the rows of all ranks."""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from promptmeup.config import Config
from promptmeup.losses.contrastive import image_text
from promptmeup.losses.matching import matching
from promptmeup.losses.soft_label import dense, harden, soft_label_contrast
from promptmeup.records import Banks, Batch, Features, Gathered, LossTerms, SoftLabels, Term


class LossWeights(Config):
    """Weight of each loss in the total; 0 switches it off, and it is not computed."""

    image_text: float = Field(default=1.0, ge=0)
    object_entity: float = Field(default=1.0, ge=0)
    image_relation: float = Field(default=1.0, ge=0)
    matching: float = Field(default=1.0, ge=0)


class LossConfig(Config):
    """What the student is trained on."""

    weights: LossWeights = LossWeights()
    same_image: Literal["positive", "mask"] = "positive"
    """true matches besides a row's own pair: further positives, or left out of the denominator"""
    hard_labels: bool = False
    """train on the teacher's most probable prompt alone instead of its distribution"""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if not any(self.weights.model_dump().values()):
            raise ValueError("every weight is 0, so there is nothing to train: set one above 0")
        return self


def _label_metrics(name: str, *, q_NK: Tensor, keep_N: Tensor, present_N: Tensor) -> dict[str, Term]:
    """Return what tells a teacher that says little: mean entropy in nats, share kept, top prompt's share.

    The top share is each rank's own (an upper bound of the world's), so that no histogram is exchanged.
    """
    q_NK = q_NK.detach()
    kept = keep_N.sum().to(q_NK.dtype)
    entropy_N = -q_NK.xlogy(q_NK).sum(1)
    votes_K = harden(q_NK).where(keep_N[:, None], 0).sum(0)
    return {
        f"{name}_label_entropy": Term(entropy_N.where(keep_N, 0).sum(), kept),
        f"{name}_label_kept": Term(kept, present_N.sum().to(q_NK.dtype)),
        f"{name}_label_top_share": Term(votes_K.max(), kept),
    }


def _soft_label_terms(
    student_ND: Tensor,
    *,
    labels: SoftLabels,
    present_N: Tensor,
    bank_KD: Tensor,
    all_student_GD: Tensor,
    all_keep_G: Tensor,
    first: int,
    temperature: Tensor,
    hard: bool,
    name: str,
) -> tuple[tuple[Term, Term], dict[str, Term]]:
    """Return row and column term and the labels' metrics; this rank's rows begin at `first` of all."""
    keep_N = all_keep_G[first : first + len(student_ND)]
    q_NK = dense(labels, num_prompts=len(bank_KD)).flatten(0, -2)
    metrics = _label_metrics(name, q_NK=q_NK, keep_N=keep_N, present_N=present_N)
    parts = soft_label_contrast(
        student_ND,
        bank_KD=bank_KD,
        q_NK=harden(q_NK) if hard else q_NK,
        keep_N=keep_N,
        all_student_GD=all_student_GD,
        all_keep_G=all_keep_G,
        temperature=temperature,
    )
    return parts, metrics


def total_loss(
    features: Features, gathered: Gathered, batch: Batch, banks: Banks | None, config: LossConfig
) -> LossTerms:
    """Return every loss that has a weight, as sums over this rank's valid rows.

    The features, labels and banks that these losses need must be there; a run checks it when it is built.

    Args:
        features: of this rank's batch.
        gathered: the same of all ranks.
        batch: this rank's.
        banks: the prompts, on the features' device; None where no loss needs them.
        config: weights and choices.
    """
    weights = {name: weight for name, weight in config.weights.model_dump().items() if weight > 0}
    terms: dict[str, tuple[Term, ...]] = {}
    metrics: dict[str, Term] = {}
    if "image_text" in weights:
        pair = image_text(
            features.image_BD,
            text_BD=features.text_BD,
            gathered=gathered,
            temperature=features.temperature,
            same_image=config.same_image,
        )
        terms["image_text"] = (pair.image_to_text, pair.text_to_image)
        metrics["contrastive_accuracy"] = pair.accuracy
    if "object_entity" in weights:
        assert banks is not None, "object_entity without prompts"
        assert batch.object_labels is not None, "object_entity without soft labels"
        assert features.object_BMD is not None, "object_entity without fused features"
        assert features.object_mask_BM is not None
        assert features.object_temperature is not None
        assert gathered.object_GMD is not None
        assert gathered.object_keep_GM is not None
        terms["object_entity"], found = _soft_label_terms(
            features.object_BMD.flatten(0, 1),
            labels=batch.object_labels,
            present_N=features.object_mask_BM.flatten(),
            bank_KD=banks.entities_KD,
            all_student_GD=gathered.object_GMD.flatten(0, 1),
            all_keep_G=gathered.object_keep_GM.flatten(),
            first=gathered.offset * features.object_BMD.shape[1],
            temperature=features.object_temperature,
            hard=config.hard_labels,
            name="object",
        )
        metrics |= found
    if "image_relation" in weights:
        assert banks is not None, "image_relation without prompts"
        assert batch.image_labels is not None, "image_relation without soft labels"
        assert features.relation_BD is not None, "image_relation without fused features"
        assert features.relation_temperature is not None
        assert gathered.relation_GD is not None
        assert gathered.relation_keep_G is not None
        terms["image_relation"], found = _soft_label_terms(
            features.relation_BD,
            labels=batch.image_labels,
            present_N=batch.image_labels.keep.new_ones(len(features.relation_BD)),
            bank_KD=banks.relations_KD,
            all_student_GD=gathered.relation_GD,
            all_keep_G=gathered.relation_keep_G,
            first=gathered.offset,
            temperature=features.relation_temperature,
            hard=config.hard_labels,
            name="relation",
        )
        metrics |= found
    if "matching" in weights:
        assert features.matching_logits_B2 is not None, "matching without fused features"
        term, accuracy = matching(features.matching_logits_B2, matched_B=batch.matched_B)
        terms["matching"] = (term,)
        metrics["matching_accuracy"] = accuracy
    return LossTerms(terms=terms, weights=weights, metrics=metrics)
