"""Cross-entropy of a classifier over prompts with the teacher's soft labels: the paper's object and relation losses.

    L_i = -Σ_k q_ik l_ik = -ε_i Σ_k l_ik - Σ_{k stored} (q_ik - ε_i) l_ik          l_ik = log softmax_k z_ik

with z the logits and q the label, of which T entries are stored and every other prompt has the same ε_i: q is never a
matrix [N, K]. Since Σ_k q_ik = 1 it is also log Σ_k exp z_ik - Σ_k q_ik z_ik, but that is not how it is computed: the
log-sum-exp of logits near 100, rounded to float32, leaves 0.5 % of the gradient of a student near its teacher.
"""

from torch import Tensor

from promptmeup.losses.soft_label import spread
from promptmeup.losses.tiles import sum_dtype
from promptmeup.records import SoftLabels, Term


def soft_cross_entropy(logits_NK: Tensor, labels: SoftLabels, keep_N: Tensor) -> Term:
    """Return Σ_i L_i over the rows that are kept, and their number.

    Computed in float32, or in float64 where the logits are float64.

    Args:
        logits_NK: rows that are not kept may hold anything, NaN too: they give no value and no gradient.
        labels: of the rows [N, T].
        keep_N: bool, rows that count.
    """
    dtype = sum_dtype(logits_NK.dtype)
    # zeroed before any product: masking a result would leave 0 · NaN in the gradient
    logits_NK = logits_NK.to(dtype).where(keep_N[:, None], 0)
    probs_NT, others_N = spread(labels, num_prompts=logits_NK.shape[1])
    probs_NT = probs_NT.to(dtype).where(keep_N[:, None], 0)
    others_N = others_N.to(dtype).where(keep_N, 0)
    beyond_NT = probs_NT - others_N[:, None]
    logs_NK = logits_NK.log_softmax(1)
    losses_N = -(others_N * logs_NK.sum(1) + (beyond_NT * logs_NK.gather(1, labels.ids)).sum(1))
    return Term(losses_N.sum(), keep_N.sum().to(dtype))
