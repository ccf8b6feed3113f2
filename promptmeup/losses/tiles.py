"""The matrix s_ij = scale · x_i·y_j that is never stored: its log-sum-exps, and sums weighted by its softmaxes.

Both are made tile by tile, in two versions with one interface: plain torch on a CPU (tiles_torch.py), and on a GPU
matrix products of cuBLAS with one Triton kernel between them (tiles_triton.py). A symmetric contrast of b rows with
N columns of width D takes 8bND operations in all: x yᵀ twice, and one product for each side's gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class LeftOut:
    """Entries that take part in nothing: true matches besides a row's own partner.

    Entry (i, j) is left out where the ids are equal and j is not ``offset + i``, the partner of row i.
    """

    x_ids_B: Tensor
    """int64"""
    y_ids_N: Tensor
    """int64"""
    offset: int

    def mask(self, rows: slice, columns: slice) -> Tensor:
        """Return a tile of the mask, true where an entry is left out."""
        found = self.x_ids_B[rows, None] == self.y_ids_N[None, columns]
        partners = self.offset + rows.start - columns.start
        if -len(found) < partners < found.shape[1]:
            found.diagonal(partners).fill_(False)
        return found


@dataclass(frozen=True)
class Logits:
    """What describes the matrix. Rows and columns are vectors of at most unit length."""

    x_BD: Tensor
    """rows of this rank: bfloat16, float32 or float64"""
    y_ND: Tensor
    """columns, of the same dtype"""
    scale: Tensor
    """shape [1], float32 or float64"""
    keep_B: Tensor | None = None
    """bool; the other rows are as if they were not there. None: all rows"""
    left_out: LeftOut | None = None


class LogSums(NamedTuple):
    """In float64, since softmaxes are made of them later."""

    rows_B: Tensor
    """log Σ_j exp(s_ij); 0 for rows that are not kept"""
    columns_N: Tensor
    """log Σ_i exp(s_ij) over this rank's kept rows; -inf where there is none"""
    best_B: Tensor | None
    """int64, the column of each row's largest entry, if asked for"""


@dataclass(frozen=True)
class Matched:
    """Weights to subtract: entry (i, j) gets ``-weight_B[i]`` where the groups are equal."""

    x_groups_B: Tensor
    """int64 in [0, N)"""
    y_groups_N: Tensor | None
    """int64 in [0, N); None where column j is group j"""
    weights_B: Tensor
    """float64; 0 for rows that match nothing, whose group may be any"""


def sum_columns(y_ND: Tensor, *, x_groups_B: Tensor, y_groups_N: Tensor | None) -> Tensor:
    """Return the sum of the columns in each row's group, [B, D]; a matrix is not needed for that."""
    if y_groups_N is not None:
        y_ND = torch.zeros_like(y_ND).index_add_(0, y_groups_N, y_ND)
    return y_ND[x_groups_B]


def add_rows(onto_ND: Tensor, x_BD: Tensor, *, x_groups_B: Tensor, y_groups_N: Tensor | None) -> None:
    """Add to each column the sum of the rows in its group."""
    if y_groups_N is None:
        onto_ND.index_add_(0, x_groups_B, x_BD)
        return
    groups_ND = torch.zeros(onto_ND.shape, dtype=x_BD.dtype, device=x_BD.device)
    onto_ND.add_(groups_ND.index_add_(0, x_groups_B, x_BD)[y_groups_N])


@dataclass(frozen=True)
class Weights:
    """W_ij = row_i exp(s_ij - row_log_i) + column_j exp(s_ij - column_log_j) - matched; all float64."""

    row_logs_B: Tensor
    column_logs_N: Tensor
    rows_B: Tensor
    columns_N: Tensor
    matched: Matched | None = None


def cut(num_rows: int, num_columns: int, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of each tile of a matrix, row by row of tiles."""
    for row in range(0, num_rows, height):
        for column in range(0, num_columns, width):
            yield slice(row, min(row + height, num_rows)), slice(column, min(column + width, num_columns))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what products and exponentials of vectors of `dtype` are summed in: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def finite(log_sums_N: Tensor) -> Tensor:
    """Return 0 in place of -inf, the log-sum-exp of a row or column of which no entry takes part."""
    return log_sums_N.where(log_sums_N != -torch.inf, 0)


def log_sums(logits: Logits, *, find_best: bool = False) -> LogSums:
    """Return the log-sum-exps of all rows and columns, in one pass."""
    if logits.x_BD.is_cuda:
        from promptmeup.losses import tiles_triton

        return tiles_triton.log_sums(logits, find_best=find_best)
    from promptmeup.losses import tiles_torch

    return tiles_torch.log_sums(logits, find_best=find_best)


def weighted_sums(
    logits: Logits, weights: Weights, *, x_BD: Tensor, y_ND: Tensor, onto_columns: Tensor | None
) -> Tensor:
    """Return ``W y`` [B, D] and add ``Wᵀ x`` to `onto_columns` [N, D], in one pass.

    Args:
        logits: what the softmaxes are of.
        weights: W, see there.
        x_BD: vectors of the rows, of the dtype of `logits`; finite also where a row is not kept.
        y_ND: vectors of the columns.
        onto_columns: float32 (float64 for float64 vectors), or None where it is not needed.

    Returns:
        [B, D] of the dtype of `onto_columns`.
    """
    if logits.x_BD.is_cuda:
        from promptmeup.losses import tiles_triton

        return tiles_triton.weighted_sums(logits, weights, x_BD=x_BD, y_ND=y_ND, onto_columns=onto_columns)
    from promptmeup.losses import tiles_torch

    return tiles_torch.weighted_sums(logits, weights, x_BD=x_BD, y_ND=y_ND, onto_columns=onto_columns)
