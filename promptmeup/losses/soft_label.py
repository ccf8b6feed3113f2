"""Contrast of the student's states with a bank of prompts, under the teacher's soft labels.

    s_ik = x_i·e_k / τ                          i: objects or images, k: prompts; q_i: the label of i
    row (object → prompt):    L_i = -Σ_k q_ik log softmax_k s_ik,       mean over the valid rows of the world
    column (prompt → object): L_k = -Σ_i p_ik log softmax_i s_ik,       i over the valid rows of the world,
                              p_ik = q_ik / m_k,  m_k = Σ_i q_ik,       mean over prompts weighted by m_k

The prompts are on every rank, so no features travel: of the other ranks' objects only Σ_i exp s_ik is needed.
With c_k = logsumexp_i s_ik the column mean needs no gathered labels either,

    Σ_k m_k L_k = Σ_k m_k Σ_i (q_ik / m_k)(c_k - s_ik) = Σ_k m_k c_k - Σ_i Σ_k q_ik s_ik,

where the last term is a sum over rows of which each rank adds its own; and because every q_i sums to one, the sum
of the weights, Σ_k m_k, is the number of valid rows. Σ_k q_ik s_ik = x_i·ē_i / τ, with ē_i = Σ_k q_ik e_k made
from the stored entries of the label, so neither logits nor labels are ever a matrix [N, K].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from promptmeup.losses.contrast import Gradients, from_sums, to_sums
from promptmeup.losses.tiles import Logits, Weights, log_sums, sum_dtype, weighted_sums
from promptmeup.records import SoftLabels


def hardest(labels: SoftLabels) -> SoftLabels:
    """Return one-hot labels of the most probable prompt."""
    return SoftLabels(labels.ids[..., :1], torch.ones_like(labels.probs[..., :1]), labels.keep)


def spread(labels: SoftLabels, *, num_prompts: int) -> tuple[Tensor, Tensor]:
    """Return the stored probabilities [..., T] and that of each other prompt [...], summing to one.

    The mass that the stored entries leave is spread evenly over the other prompts. Stored probabilities are
    rounded, so the result is normalised.
    """
    num_kept = labels.ids.shape[-1]
    assert num_kept <= num_prompts, f"labels with {num_kept} entries for {num_prompts} prompts"
    rest = (1 - labels.probs.sum(-1)).clamp(min=0)
    others = num_prompts - num_kept
    each = rest / others if others else torch.zeros_like(rest)
    total = labels.probs.sum(-1) + each * others
    return labels.probs / total[..., None], each / total


class LabelPair:
    """Rows of this rank against prompts that all ranks have, in both directions; see `contrast.Pair`.

    Always in float32: rows that follow their teacher have a gradient that is a small difference of softmaxes, of
    which bfloat16 leaves 3 to 14 % error; and K prompts are few.

    Args:
        x_ND: unit rows of this rank: objects flattened over images, or images. Rows that are not kept may hold
            anything, NaN too: they give no value and no gradient.
        bank_KD: unit rows of the prompts; no gradient flows to them.
        labels: of the rows [N, T].
        keep_N: bool, rows that count.
        temperature: shape [1].
    """

    columns = None

    def __init__(
        self, x_ND: Tensor, *, bank_KD: Tensor, labels: SoftLabels, keep_N: Tensor, temperature: Tensor
    ) -> None:
        self.x, self.temperature = x_ND, temperature
        self._bank_KD, self._labels, self._keep_N = bank_KD, labels, keep_N

    def measure(self) -> list[Tensor]:
        dtype = sum_dtype(self.x.dtype)
        # zeroed before any product: masking a result would leave 0 · NaN in the gradient
        x_ND = self.x.detach().to(dtype).where(self._keep_N[:, None], 0)
        bank_KD, temperature = self._bank_KD.detach().to(dtype), self.temperature.detach()
        self._scale = 1 / temperature.to(dtype)
        self._logits = Logits(x_ND, bank_KD, self._scale, keep_B=self._keep_N)
        sums = log_sums(self._logits)
        self._row_logs_N = sums.rows_B

        ids_NT = self._labels.ids
        probs_NT, others_N = spread(self._labels, num_prompts=len(bank_KD))
        probs_NT = probs_NT.to(dtype).where(self._keep_N[:, None], 0)
        others_N = others_N.to(dtype).where(self._keep_N, 0)
        beyond_NT = probs_NT - others_N[:, None]
        self._labelled_ND = others_N[:, None] * bank_KD.sum(0) + F.embedding_bag(
            ids_NT, bank_KD, per_sample_weights=beyond_NT, mode="sum"
        )
        pull = (x_ND * self._labelled_ND).sum(1).double().sum() * self._scale.double().squeeze()
        mass_K = others_N.double().sum().expand(len(bank_KD))
        mass_K = mass_K.index_add(0, ids_NT.flatten(), beyond_NT.double().flatten())
        row_sum = sums.rows_B.where(self._keep_N, 0).sum() - pull
        return [to_sums(sums.columns_N), mass_K, torch.stack([row_sum, pull, self._keep_N.sum().double()])]

    def value(self, totals: Sequence[Tensor]) -> Tensor:
        self._column_logs_K, self._mass_K = from_sums(totals[0]), totals[1]
        row_sum, pull, count = totals[2].unbind()
        self._num_rows = count.clamp(min=1)
        # a prompt without any row has the mass 0 and the log-sum-exp -inf
        column_sum = (self._mass_K * self._column_logs_K.where(self._mass_K != 0, 0)).sum() - pull
        return (row_sum + column_sum) / (2 * self._num_rows)

    def gradients(self, factor: Tensor) -> Gradients:
        weight = factor * self._scale.double().squeeze() / (2 * self._num_rows)
        weights = Weights(self._row_logs_N, self._column_logs_K, weight * self._keep_N, weight * self._mass_K)
        x_ND, bank_KD = self._logits.x_BD, self._logits.y_ND
        gradient_ND = weighted_sums(self._logits, weights, x_BD=x_ND, y_ND=bank_KD, onto_columns=None)
        gradient_ND -= (2 * weight).to(gradient_ND.dtype) * self._labelled_ND
        along = (gradient_ND * x_ND).sum(1).double().sum()
        return Gradients(gradient_ND, (-along * self._scale).reshape(1))
