"""The contrasts as anybody would write them first: whole matrices of logits, all rows at hand, autograd.

An oracle for the tiled versions where the NumPy reference is too slow: more rows, more kinds of targets.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from promptmeup.records import SoftLabels


class SoftTargets(NamedTuple):
    """A teacher's features of the same rows and columns."""

    x_GU: Tensor
    y_GU: Tensor
    temperature: float
    share: float


def _one_direction(
    logits_GG: Tensor, *, positive_GG: Tensor, left_out_GG: Tensor, teacher_GG: Tensor | None, share: float
) -> Tensor:
    """Mean over the rows that count of logsumexp - Σ target · logit."""
    hidden_GG = logits_GG.masked_fill(left_out_GG, -torch.inf)
    num_G = positive_GG.sum(1)
    hard_GG = positive_GG.to(logits_GG.dtype) / num_G.clamp(min=1)[:, None]
    target_GG, valid_G = hard_GG, num_G > 0
    if teacher_GG is not None:
        soft_GG = teacher_GG.masked_fill(left_out_GG, -torch.inf).softmax(1)
        target_GG = torch.where(valid_G[:, None], (1 - share) * hard_GG + share * soft_GG, soft_GG)
        valid_G = torch.ones_like(valid_G)
    loss_G = hidden_GG.logsumexp(1) - (target_GG * logits_GG).sum(1)
    return loss_G.where(valid_G, 0).sum() / valid_G.sum().clamp(min=1)


def image_text(
    x_GD: Tensor,
    y_GD: Tensor,
    *,
    x_ids_G: Tensor,
    y_ids_G: Tensor,
    temperature: Tensor,
    same_image: Literal["positive", "mask", "negative"] = "positive",
    teacher: SoftTargets | None = None,
) -> Tensor:
    """Mean of both directions over the world."""
    logits_GG = x_GD @ y_GD.T / temperature
    same_GG = x_ids_G[:, None] == y_ids_G[None, :]
    partner_GG = torch.eye(len(x_GD), dtype=torch.bool)
    positive_GG = same_GG if same_image == "positive" else same_GG & partner_GG
    left_out_GG = same_GG & ~partner_GG if same_image == "mask" else torch.zeros_like(same_GG)
    teacher_GG, share = None, 0.0
    if teacher is not None:
        teacher_GG, share = teacher.x_GU @ teacher.y_GU.T / teacher.temperature, teacher.share
    forth = _one_direction(
        logits_GG, positive_GG=positive_GG, left_out_GG=left_out_GG, teacher_GG=teacher_GG, share=share
    )
    back = _one_direction(
        logits_GG.T,
        positive_GG=positive_GG.T,
        left_out_GG=left_out_GG.T,
        teacher_GG=None if teacher_GG is None else teacher_GG.T,
        share=share,
    )
    return (forth + back) / 2


def dense(labels: SoftLabels, *, num_prompts: int) -> Tensor:
    """Labels as whole distributions [N, K]: what is left is spread evenly over the prompts not stored."""
    num_kept = labels.ids.shape[-1]
    rest = (1 - labels.probs.sum(-1, keepdim=True)).clamp(min=0) / max(num_prompts - num_kept, 1)
    q = rest.expand(*labels.ids.shape[:-1], num_prompts).scatter(-1, labels.ids, labels.probs)
    return q / q.sum(-1, keepdim=True)


def soft_label(
    x_ND: Tensor, *, bank_KD: Tensor, q_NK: Tensor, keep_N: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean over rows, and mean over columns weighted by their mass."""
    if not keep_N.any():
        zero = (x_ND.where(keep_N[:, None], 0).sum() + temperature.sum()) * 0
        return zero, zero
    logits_NK, q_NK = x_ND[keep_N] @ bank_KD.T / temperature, q_NK[keep_N]
    mass_K = q_NK.sum(0)
    row = -(q_NK * logits_NK.log_softmax(1)).sum(1).mean()
    column_K = -(q_NK / mass_K * logits_NK.log_softmax(0)).sum(0)
    return row, (mass_K * column_K).sum() / mass_K.sum()
