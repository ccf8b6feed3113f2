"""`tiles` in plain torch: what runs on a CPU, and what the GPU's kernels are tested against.

Exponentials are what costs here beside the matrix products, so a tile takes one instead of two wherever the
numbers allow it: with one shift M for the whole tile, exp(s - M) serves its rows and its columns alike.
"""

import torch
from torch import Tensor

from promptmeup.losses.tiles import Logits, LogSums, Weights, add_rows, cut, finite, sum_columns, sum_dtype

# Fastest of 256 to 2048 in both directions at D = 256 and 512 on one core, by less than a tenth.
TILE_ROWS, TILE_COLUMNS = 1024, 512
# Up to this scale no shift is needed: exp(±40) times a million terms is far from the ends of float32.
PLAIN_SCALE = 40.0
# With a shift M, every row's and column's own log-sum-exp may lie this far below M: what exp(s - M) flushes to
# zero (s - M < -87) is then less than exp(-27) of any of them.
SHARED_SHIFT = 60.0


def _wide(vectors: Tensor) -> Tensor:
    # a product of bfloat16 matrices is emulated on a CPU, and slower than converting them
    return vectors.to(sum_dtype(vectors.dtype))


class _Buffers:
    """Two tiles of memory, used again and again: a fresh one would cost a page fault for every 1024 entries."""

    def __init__(self, like: Tensor, *, num_rows: int, num_columns: int) -> None:
        size = min(num_rows, TILE_ROWS) * min(num_columns, TILE_COLUMNS)
        self.first, self.second = (like.new_empty(size) for _ in range(2))

    def tile(self, buffer: Tensor, rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return buffer[: height * width].view(height, width)


def _kept(logits: Logits) -> Tensor | None:
    return None if logits.keep_B is None else logits.keep_B.nonzero().squeeze(1)


def log_sums(logits: Logits, *, find_best: bool = False) -> LogSums:
    """See `tiles.log_sums`."""
    kept = _kept(logits)
    x_BD = _wide(logits.x_BD if kept is None else logits.x_BD[kept]) * logits.scale
    y_ND = _wide(logits.y_ND)
    rows_B = x_BD.new_full((len(x_BD),), -torch.inf, dtype=torch.float64)
    columns_N = x_BD.new_full((len(y_ND),), -torch.inf, dtype=torch.float64)
    top_B = x_BD.new_full((len(x_BD),), -torch.inf)
    best_B = torch.zeros(len(x_BD), dtype=torch.int64, device=x_BD.device)
    is_plain = float(logits.scale) <= PLAIN_SCALE
    buffers = _Buffers(x_BD, num_rows=len(x_BD), num_columns=len(y_ND))
    for rows, columns in cut(len(x_BD), len(y_ND), TILE_ROWS, TILE_COLUMNS):
        s = torch.mm(x_BD[rows], y_ND[columns].T, out=buffers.tile(buffers.first, rows, columns))
        if logits.left_out is not None:
            assert kept is None
            s.masked_fill_(logits.left_out.mask(rows, columns), -torch.inf)
        if find_best:
            _improve(top_B[rows], best_B[rows], s, first=columns.start)
        row_sums, column_sums = _tile_log_sums(s, is_plain, buffers.tile(buffers.second, rows, columns))
        rows_B[rows] = torch.logaddexp(rows_B[rows], row_sums)
        columns_N[columns] = torch.logaddexp(columns_N[columns], column_sums)
    if kept is not None:
        assert logits.keep_B is not None
        rows_B = rows_B.new_zeros(len(logits.keep_B)).index_copy(0, kept, rows_B)
        best_B = best_B.new_zeros(len(logits.keep_B)).index_copy(0, kept, best_B)
    return LogSums(rows_B, columns_N, best_B if find_best else None)


def _improve(top_B: Tensor, best_B: Tensor, s: Tensor, *, first: int) -> None:
    """Update each row's largest entry and its column; arg-max is slow, so only where a tile has a larger one."""
    largest = s.amax(1)
    better = (largest > top_B).nonzero().squeeze(1)
    if len(better):
        top_B[better] = largest[better]
        best_B[better] = s[better].argmax(1) + first


def _tile_log_sums(s: Tensor, is_plain: bool, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exps of a tile's rows and columns in float64; `s` and `spare` are overwritten."""
    if is_plain:
        s.exp_()
        return s.sum(1).double().log(), s.sum(0).double().log()
    # a row or column whose entries are all left out: finite, so that -inf minus it stays -inf
    floor = torch.finfo(s.dtype).min
    row_tops, column_tops = s.amax(1).clamp_(min=floor), s.amax(0).clamp_(min=floor)
    shift = row_tops.max()
    if shift - row_tops.min() <= SHARED_SHIFT and shift - column_tops.min() <= SHARED_SHIFT:
        s.sub_(shift).exp_()
        return s.sum(1).double().log() + shift, s.sum(0).double().log() + shift
    rows = torch.sub(s, row_tops[:, None], out=spare).exp_().sum(1).double().log() + row_tops
    columns = torch.sub(s, column_tops, out=spare).exp_().sum(0).double().log() + column_tops
    return rows, columns


def weighted_sums(
    logits: Logits, weights: Weights, *, x_BD: Tensor, y_ND: Tensor, onto_columns: Tensor | None
) -> Tensor:
    """See `tiles.weighted_sums`."""
    kept = _kept(logits)
    every = slice(None) if kept is None else kept
    left_BD, right_ND = _wide(logits.x_BD[every]) * logits.scale, _wide(logits.y_ND)
    x_BD, y_ND, num_rows = _wide(x_BD[every]), _wide(y_ND), len(x_BD)
    row_logs_B, column_logs_N = finite(weights.row_logs_B[every]), finite(weights.column_logs_N)
    rows_B, columns_N = weights.rows_B[every], weights.columns_N
    is_plain = float(logits.scale) <= PLAIN_SCALE
    of_y_BD = x_BD.new_zeros(len(x_BD), y_ND.shape[1])
    buffers = _Buffers(left_BD, num_rows=len(left_BD), num_columns=len(right_ND))
    for rows, columns in cut(len(left_BD), len(right_ND), TILE_ROWS, TILE_COLUMNS):
        s = torch.mm(left_BD[rows], right_ND[columns].T, out=buffers.tile(buffers.first, rows, columns))
        if logits.left_out is not None:
            s.masked_fill_(logits.left_out.mask(rows, columns), -torch.inf)
        w = _tile_weights(
            s,
            buffers.tile(buffers.second, rows, columns),
            is_plain,
            logs=(row_logs_B[rows], column_logs_N[columns]),
            factors=(rows_B[rows], columns_N[columns]),
        )
        of_y_BD[rows].addmm_(w, y_ND[columns])
        if onto_columns is not None:
            onto_columns[columns].addmm_(w.T, x_BD[rows])
    matched = weights.matched
    if matched is not None:
        assert kept is None
        weights_B1 = matched.weights_B.to(x_BD.dtype)[:, None]
        own_groups = sum_columns(y_ND, x_groups_B=matched.x_groups_B, y_groups_N=matched.y_groups_N)
        of_y_BD.addcmul_(own_groups, weights_B1, value=-1)
        if onto_columns is not None:
            pulls_BD = x_BD * -weights_B1
            add_rows(onto_columns, pulls_BD, x_groups_B=matched.x_groups_B, y_groups_N=matched.y_groups_N)
    return (
        of_y_BD if kept is None else of_y_BD.new_zeros(num_rows, y_ND.shape[1]).index_copy(0, kept, of_y_BD)
    )


def _tile_weights(
    s: Tensor,
    spare: Tensor,
    is_plain: bool,
    *,
    logs: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor],
) -> Tensor:
    """Return a tile of W without what is matched; `s` and `spare` are overwritten."""
    (row_logs, column_logs), (row_factors, column_factors) = logs, factors
    shift = s.new_zeros(()) if is_plain else s.max()
    if is_plain or (
        shift - row_logs.min() <= SHARED_SHIFT
        and shift - column_logs.min() <= SHARED_SHIFT
        and shift.isfinite()
    ):
        row_factors = (row_factors * (shift - row_logs).exp()).to(s.dtype)
        column_factors = (column_factors * (shift - column_logs).exp()).to(s.dtype)
        torch.add(row_factors[:, None], column_factors, out=spare)
        return (s if is_plain else s.sub_(shift)).exp_().mul_(spare)
    torch.sub(s, row_logs.to(s.dtype)[:, None], out=spare).exp_().mul_(row_factors.to(s.dtype)[:, None])
    s.sub_(column_logs.to(s.dtype)).exp_().mul_(column_factors.to(s.dtype))
    return spare.add_(s)
