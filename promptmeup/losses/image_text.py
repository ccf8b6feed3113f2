"""Image-text contrast: rows of this rank against the rows of all ranks, with the true matches found by id.

    P_ij = [image of i = image of j's own record]         n_i = Σ_j P_ij         m_j = Σ_i P_ij
    q_ij = P_ij / n_i  where n_i > 0, else row i does not count                  p_ij = P_ij / m_j  likewise

Rows without a true match (falsified pairs) have no loss of their own and stay negatives of the others. The means
are over the rows and the columns that count, or, as the paper has it, over all.
Van den Oord et al. 2018 (InfoNCE), Radford et al. 2021 (both directions), Khosla et al. 2020 (several
positives, L_out). With a teacher, a share λ of the target is the softmax of the teacher's own similarities
t_ij = u_i·v_j / τ_T, as in Andonian et al. 2022; rows and columns without a true match then follow it alone.

A sum over the true matches of i is a sum over a group of equal ids, which takes O(N D) and no matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from promptmeup.losses.contrast import Gradients, from_sums, to_sums
from promptmeup.losses.exchange import Columns
from promptmeup.losses.tiles import (
    LeftOut,
    Logits,
    Matched,
    Weights,
    log_sums,
    sum_columns,
    sum_dtype,
    weighted_sums,
)
from promptmeup.records import Term

SameImage = Literal["positive", "mask", "negative"]
"""Another row's true match is a further positive of the row, is left out of its denominator, or, as the paper has it,
is a negative like any other."""
MeanOver = Literal["matched", "all"]
"""Rows and columns that have a positive, or all: those that have none then add 0 to the sum and 1 to the count."""


@dataclass(frozen=True)
class Teacher:
    """Soft targets from another model's features of the same rows and columns."""

    x_BU: Tensor
    """unit rows of this rank"""
    position: int
    """which of the sets of columns holds the teacher's; they are sent as constant"""
    temperature: float
    share: float
    """λ: of the target of rows that have a true match; above 0, at most 1"""


@dataclass(frozen=True)
class Matches:
    """Who belongs together, in the whole world; "m" and "n" as above."""

    x_groups_B: Tensor
    """int64 in [0, G): the group of columns that this rank's row i matches, any where it matches none"""
    y_groups_G: Tensor | None
    """int64 in [0, G); None where column j is group j"""
    row_shares_B: Tensor
    """float64: 1 / n_i; 0 where the row matches nothing"""
    column_shares_B: Tensor
    """float64: 1 / m_j of the columns j that row i matches; 0 where it matches nothing"""
    rows_G: Tensor
    """bool: rows that match a column"""
    columns_G: Tensor
    """bool: columns that match a row"""


def find_matches(
    x_ids_G: Tensor, y_ids_G: Tensor, *, own: slice, same_image: SameImage = "positive"
) -> Matches:
    """Return the matches of the world's rows and columns, pair i being row i and column i.

    Args:
        x_ids_G: int64.
        y_ids_G: int64; equal ids match.
        own: this rank's rows.
        same_image: but for "positive" a row matches its own partner at most.
    """
    if same_image != "positive":
        partners_G = torch.arange(len(y_ids_G), device=y_ids_G.device)
        matched_G = x_ids_G == y_ids_G
        share_B = matched_G[own].double()
        return Matches(partners_G[own], None, share_B, share_B, matched_G, matched_G)
    # a group's number is the place of its first id among the sorted ones
    sorted_ids_G, order_G = y_ids_G.sort()
    y_groups_G = torch.searchsorted(sorted_ids_G, y_ids_G)
    x_groups_G = torch.searchsorted(sorted_ids_G, x_ids_G).clamp(max=len(y_ids_G) - 1)
    matched_G = sorted_ids_G[x_groups_G] == x_ids_G
    zeros = torch.zeros(len(y_ids_G), dtype=torch.float64, device=y_ids_G.device)
    num_columns = zeros.index_add(0, y_groups_G, torch.ones_like(zeros))
    num_rows = zeros.index_add(0, x_groups_G, matched_G.double())
    groups_B, matched_B = x_groups_G[own], matched_G[own].double()
    # a GPU would have to be waited for to know that no id comes twice, and adds up groups fast enough
    is_unique = not y_ids_G.is_cuda and bool(num_columns.max() <= 1)
    return Matches(
        order_G[groups_B] if is_unique else groups_B,
        None if is_unique else y_groups_G,
        row_shares_B=matched_B / num_columns[groups_B].clamp(min=1),
        column_shares_B=matched_B / num_rows[groups_B].clamp(min=1),
        rows_G=matched_G,
        columns_G=num_rows[y_groups_G] > 0,
    )


class IdPair:
    """Rows of this rank against gathered columns, in both directions; see `contrast.Pair`.

    Args:
        x_BD: unit rows.
        columns: sent; the ids that travel with it are [id of row i, id of column i].
        temperature: shape [1].
        same_image: see `SameImage`. But for "positive" the own partner is the only positive, so a row whose own
            partner is false does not count.
        mean_over: see `MeanOver`; with a teacher every row counts anyway.
        position: which of the sets of columns to compare with.
        teacher: soft targets, or None.
        watch_accuracy: find each row's most similar column.
    """

    def __init__(
        self,
        x_BD: Tensor,
        *,
        columns: Columns,
        temperature: Tensor,
        same_image: SameImage = "positive",
        mean_over: MeanOver = "matched",
        position: int = 0,
        teacher: Teacher | None = None,
        watch_accuracy: bool = True,
    ) -> None:
        self.x, self.temperature = x_BD, temperature
        self.columns = columns
        self.position = position
        self.same_image = same_image
        self.mean_over = mean_over
        self.teacher = teacher
        self.watch_accuracy = watch_accuracy
        self.accuracy: Term | None = None
        """over the world, from rows to columns: rows whose most similar column is a true match"""

    def measure(self) -> list[Tensor]:
        sets, ids_G2 = self.columns.receive()
        y_GD = sets[self.position]
        if self.teacher is not None:
            # two softmaxes are subtracted that may be nearly equal: bfloat16 would leave their rounding
            y_GD = y_GD.to(sum_dtype(y_GD.dtype))
        x_BD, temperature = self.x.detach().to(y_GD.dtype), self.temperature.detach()
        own = slice(self.columns.offset, self.columns.offset + len(x_BD))
        x_ids_G, y_ids_G = (ids.contiguous() for ids in ids_G2.unbind(1))
        left_out = None
        if self.same_image == "mask":
            left_out = LeftOut(x_ids_G[own], y_ids_G, self.columns.offset)
        self._scale = 1 / temperature.to(sum_dtype(x_BD.dtype))
        self._logits = Logits(x_BD, y_GD, self._scale, left_out=left_out)
        self._matches = find_matches(x_ids_G, y_ids_G, own=own, same_image=self.same_image)
        self._own = own
        self._share = 0.0 if self.teacher is None else self.teacher.share

        sums = log_sums(self._logits, find_best=self.watch_accuracy)
        self._row_logs_B = sums.rows_B
        matched_B = self._matched_means(x_BD, y_GD)
        hard = 1 - self._share
        valid_B = self._valid(self._matches.rows_G)[own].double()
        row_sum = valid_B @ sums.rows_B - hard * self._matches.row_shares_B @ matched_B
        column_pull = hard * self._matches.column_shares_B @ matched_B
        hits = row_sum.new_zeros(())
        if sums.best_B is not None:
            hits = self._hits(sums.best_B, x_ids_G[own], y_ids_G).sum().double()
        message = [to_sums(sums.columns_N), torch.stack([row_sum, column_pull, hits])]
        if self.teacher is not None:
            v_GU = sets[self.teacher.position].to(y_GD.dtype)
            scale = torch.full_like(self._scale, 1 / self.teacher.temperature)
            self._teacher_logits = Logits(
                self.teacher.x_BU.detach().to(v_GU.dtype), v_GU, scale, left_out=left_out
            )
            teacher_sums = log_sums(self._teacher_logits)
            self._teacher_row_logs_B = teacher_sums.rows_B
            message.append(to_sums(teacher_sums.columns_N))
        return message

    def value(self, totals: Sequence[Tensor]) -> Tensor:
        matches = self._matches
        self._column_logs_G = from_sums(totals[0])
        row_sum, column_pull, hits = totals[1].unbind()
        valid_rows_G, valid_columns_G = self._valid(matches.rows_G), self._valid(matches.columns_G)
        self._num_rows, self._num_columns = self._count(valid_rows_G), self._count(valid_columns_G)
        column_sum = self._column_logs_G.where(valid_columns_G, 0).sum() - column_pull
        if self.watch_accuracy:
            self.accuracy = Term(hits, matches.rows_G.sum().double())
        mean = (row_sum / self._num_rows + column_sum / self._num_columns) / 2
        if self.teacher is not None:
            mean = mean - self.columns.exchange.sum(self._follow_teacher(from_sums(totals[2])))
        return mean

    def gradients(self, factor: Tensor) -> Gradients:
        slot = self.columns.slot(self.position)
        matches, hard = self._matches, 1 - self._share
        # the logits' gradient, times what the logits are times the vectors' products
        factor = factor * self._scale.double().squeeze()
        row_weight, column_weight = factor / (2 * self._num_rows), factor / (2 * self._num_columns)
        pulls_B = hard * (row_weight * matches.row_shares_B + column_weight * matches.column_shares_B)
        weights = Weights(
            self._row_logs_B,
            self._column_logs_G,
            row_weight * self._valid(matches.rows_G)[self._own],
            column_weight * self._valid(matches.columns_G),
            Matched(matches.x_groups_B, matches.y_groups_G, pulls_B),
        )
        x_BD, y_GD = self._logits.x_BD, self._logits.y_ND
        gradient_BD = weighted_sums(self._logits, weights, x_BD=x_BD, y_ND=y_GD, onto_columns=slot)
        if self.teacher is not None:
            factor = factor.to(gradient_BD.dtype)
            gradient_BD -= factor * self._of_teacher_BD
            if slot is not None:
                slot -= factor * self._of_teacher_GD
        # s = x·y / τ: what the rows' gradient says along the rows, it says of 1/τ
        along = (gradient_BD * x_BD).sum(1).double().sum()
        return Gradients(gradient_BD, (-along * self._scale).reshape(1))

    def _valid(self, matched_G: Tensor) -> Tensor:
        """Return which rows or columns count: with a teacher all, since it says something of each."""
        return matched_G if self.teacher is None else torch.ones_like(matched_G)

    def _count(self, valid_G: Tensor) -> Tensor:
        """Return what the sum over rows or columns is divided by, float64."""
        counted_G = torch.ones_like(valid_G) if self.mean_over == "all" else valid_G
        return counted_G.sum().double().clamp(min=1)

    def _matched_means(self, x_BD: Tensor, y_GD: Tensor) -> Tensor:
        """Return Σ_j P_ij s_ij of this rank's rows, float64."""
        y_GD = y_GD.to(sum_dtype(y_GD.dtype))
        matches = self._matches
        own_groups_BD = sum_columns(y_GD, x_groups_B=matches.x_groups_B, y_groups_N=matches.y_groups_G)
        return (x_BD.to(y_GD.dtype) * own_groups_BD).sum(1).double() * self._scale

    def _hits(self, best_B: Tensor, x_ids_B: Tensor, y_ids_G: Tensor) -> Tensor:
        if self.same_image != "positive":
            partners_B = torch.arange(self._own.start, self._own.stop, device=best_B.device)
            return (best_B == partners_B) & self._matches.rows_G[self._own]
        return y_ids_G[best_B] == x_ids_B

    def _follow_teacher(self, column_logs_G: Tensor) -> Tensor:
        """Return the teacher's part of Σ q s, and keep its part of the gradients; A_ij is its part of the targets."""
        matches = self._matches
        # rows and columns without a true match follow the teacher alone
        row_shares_B = torch.ones_like(self._row_logs_B).where(~matches.rows_G[self._own], self._share)
        column_shares_G = torch.ones_like(column_logs_G).where(~matches.columns_G, self._share)
        weights = Weights(
            self._teacher_row_logs_B,
            column_logs_G,
            row_shares_B / (2 * self._num_rows),
            column_shares_G / (2 * self._num_columns),
        )
        x_BD, y_GD = self._logits.x_BD, self._logits.y_ND
        self._of_teacher_GD = torch.zeros_like(y_GD)
        self._of_teacher_BD = weighted_sums(
            self._teacher_logits, weights, x_BD=x_BD, y_ND=y_GD, onto_columns=self._of_teacher_GD
        )
        return (x_BD * self._of_teacher_BD).sum(1).double().sum() * self._scale.double().squeeze()
