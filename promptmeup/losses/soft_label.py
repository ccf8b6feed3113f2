"""Contrast of the student's states with a bank of prompts, under the teacher's soft labels.

    S_ik = x_i·e_k / τ                          i: objects or images, k: prompts; q_i: the label of i
    row (object → prompt):    L_i = -Σ_k q_ik log softmax_k S_ik,       mean over the valid rows of the world
    column (prompt → object): L_k = -Σ_i p_ik log softmax_i S_ik,       i over the valid rows of the world,
                              p_ik = q_ik / m_k,  m_k = Σ_i q_ik,       mean over prompts weighted by m_k

The column mean needs no gathered labels. With c_k = logsumexp_i S_ik,

    Σ_k m_k L_k = Σ_k m_k Σ_i (q_ik / m_k)(c_k - S_ik) = Σ_i Σ_k q_ik (c_k - S_ik),

a sum over rows of which each rank adds its own; and because every q_i sums to one, the sum of the
weights, Σ_k m_k, is the number of valid rows.
"""

import torch
from torch import Tensor

from promptmeup.losses.similarity import similarities
from promptmeup.records import SoftLabels, Term


def dense(labels: SoftLabels, *, num_prompts: int) -> Tensor:
    """Return the labels as whole distributions q [..., K] over `num_prompts`, each summing to one.

    The mass that the stored entries leave is spread evenly over the other prompts. Stored
    probabilities are rounded, so the result is normalised.
    """
    num_kept = labels.ids.shape[-1]
    assert num_kept <= num_prompts, f"labels with {num_kept} entries for {num_prompts} prompts"
    rest = (1 - labels.probs.sum(-1, keepdim=True)).clamp(min=0)
    others = max(num_prompts - num_kept, 1)
    q = (rest / others).expand(*labels.ids.shape[:-1], num_prompts).scatter(-1, labels.ids, labels.probs)
    return q / q.sum(-1, keepdim=True)


def harden(q: Tensor) -> Tensor:
    """Return one-hot rows [..., K] at the most probable prompt."""
    return torch.zeros_like(q).scatter(-1, q.argmax(-1, keepdim=True), 1.0)


def soft_label_contrast(
    student_ND: Tensor,
    *,
    bank_KD: Tensor,
    q_NK: Tensor,
    keep_N: Tensor,
    all_student_GD: Tensor,
    all_keep_G: Tensor,
    temperature: Tensor,
) -> tuple[Term, Term]:
    """Return the row term and the column term; their count is the number of this rank's valid rows.

    Rows that do not count may hold anything, NaN too: they give no value and no gradient.

    Args:
        student_ND: unit rows of this rank: objects flattened over images, or images.
        bank_KD: unit rows of the prompts.
        q_NK: label of each row, summing to one where `keep_N`.
        keep_N: bool, rows that count.
        all_student_GD: the rows of all ranks; a gradient through them must reach their owners.
        all_keep_G: bool, rows of all ranks that count.
        temperature: shape [1].
    """
    # Zeroed before the product: masking only its result would leave 0 · NaN in the gradient.
    student_ND = student_ND.where(keep_N[:, None], 0)
    all_student_GD = all_student_GD.where(all_keep_G[:, None], 0)
    logits_NK = similarities(student_ND, y_KD=bank_KD, temperature=temperature)
    all_logits_GK = similarities(all_student_GD, y_KD=bank_KD, temperature=temperature)
    q_NK = q_NK.to(logits_NK.dtype).where(keep_N[:, None], 0)
    # A finite floor, not -inf: where no row of the world counts, the log-sum-exp stays finite as well.
    floor = torch.finfo(all_logits_GK.dtype).min
    column_K = all_logits_GK.masked_fill(~all_keep_G[:, None], floor).logsumexp(0)
    count = keep_N.sum().to(logits_NK.dtype)
    row = -(q_NK * logits_NK.log_softmax(1)).sum()
    column = (q_NK * (column_K - logits_NK)).sum()
    return Term(row, count), Term(column, count)
