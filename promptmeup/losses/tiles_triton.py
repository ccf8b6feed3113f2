"""`tiles` on a GPU: cuBLAS makes a tile of logits, one Triton kernel reads it, cuBLAS multiplies what it wrote.

A tile is as large as the second-level cache of an H100 (50 MB) allows, so that most of the 10 to 14 bytes that the
kernels move for a logit do not reach the memory. Softmaxes are taken in at least float32 from logits of at least
float32, and what is matched is subtracted before the weights are rounded to the vectors' dtype: p - 1 of a row that is
learnt well is a small difference.

Nothing here waits for the GPU, and a tile costs few launches: the host must keep ahead of it. The kernels run in
Triton's interpreter as well (TRITON_INTERPRET=1): that is how they are tested on machines without a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from promptmeup.losses.tiles import Logits, LogSums, Weights, cut, finite, sum_dtype

TILE_ROWS, TILE_COLUMNS = 2048, 4096
"""32 MB of float32 logits"""
BLOCK_ROWS, BLOCK_COLUMNS = 64, 128
"""what one program of a kernel reads: 32 KB"""
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _load_logits(  # type: ignore[no-untyped-def]
    s_pointer,
    s_stride,
    scale_pointer,
    keep_pointer,
    x_ids_pointer,
    y_ids_pointer,
    offset,
    first_row,
    first_column,
    height,
    width,
    rows,
    columns,
    has_keep: tl.constexpr,
    has_left_out: tl.constexpr,
):
    """Return a block of scaled logits; -inf outside of the tile and for what takes no part."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    s = tl.load(s_pointer + rows[:, None].to(tl.int64) * s_stride + columns[None, :], mask=inside, other=0.0)
    s = s * tl.load(scale_pointer)
    takes_part = inside
    if has_keep:
        keep = tl.load(keep_pointer + first_row + rows, mask=rows < height, other=0)
        takes_part = takes_part & (keep[:, None] != 0)
    if has_left_out:
        x_ids = tl.load(x_ids_pointer + first_row + rows, mask=rows < height, other=0)
        y_ids = tl.load(y_ids_pointer + first_column + columns, mask=columns < width, other=0)
        is_partner = first_column + columns[None, :] == offset + first_row + rows[:, None]
        takes_part = takes_part & ((x_ids[:, None] != y_ids[None, :]) | is_partner)
    return tl.where(takes_part, s, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _log_sums_kernel(  # type: ignore[no-untyped-def]
    s_pointer,
    s_stride,
    scale_pointer,
    keep_pointer,
    x_ids_pointer,
    y_ids_pointer,
    offset,
    first_row,
    first_column,
    height,
    width,
    row_logs_pointer,
    tops_pointer,
    best_pointer,
    row_logs_stride,
    column_logs_pointer,
    column_logs_stride,
    has_keep: tl.constexpr,
    has_left_out: tl.constexpr,
    find_best: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Write each block's log-sum-exps: rows to [row, block of columns], columns to [block of rows, column].

    Rows are counted from the tile's first, columns from the matrix's; so are the blocks.
    """
    row_block, column_block = tl.program_id(0), tl.program_id(1)
    rows = row_block * block_rows + tl.arange(0, block_rows)
    columns = column_block * block_columns + tl.arange(0, block_columns)
    s = _load_logits(
        s_pointer,
        s_stride,
        scale_pointer,
        keep_pointer,
        x_ids_pointer,
        y_ids_pointer,
        offset,
        first_row,
        first_column,
        height,
        width,
        rows,
        columns,
        has_keep,
        has_left_out,
    )
    # finite, so that -inf minus it stays -inf and not NaN
    row_tops = tl.maximum(tl.max(s, 1), -3.0e38)
    row_sums = tl.sum(tl.exp(s - row_tops[:, None]), 1)
    column_tops = tl.maximum(tl.max(s, 0), -3.0e38)
    column_sums = tl.sum(tl.exp(s - column_tops[None, :]), 0)
    at = rows * row_logs_stride + tl.cdiv(first_column, block_columns) + column_block
    tl.store(row_logs_pointer + at, row_tops + tl.log(row_sums), mask=rows < height)
    tl.store(
        column_logs_pointer + row_block * column_logs_stride + first_column + columns,
        column_tops + tl.log(column_sums),
        mask=columns < width,
    )
    if find_best:
        best = first_column + column_block * block_columns + tl.argmax(s, 1)
        tl.store(tops_pointer + at, tl.max(s, 1), mask=rows < height)
        tl.store(best_pointer + at, best, mask=rows < height)


@triton.jit  # type: ignore[untyped-decorator]
def _weights_kernel(  # type: ignore[no-untyped-def]
    s_pointer,
    s_stride,
    scale_pointer,
    keep_pointer,
    x_ids_pointer,
    y_ids_pointer,
    offset,
    first_row,
    first_column,
    height,
    width,
    row_logs_pointer,
    column_logs_pointer,
    row_factors_pointer,
    column_factors_pointer,
    x_groups_pointer,
    y_groups_pointer,
    matched_pointer,
    w_pointer,
    w_stride,
    has_keep: tl.constexpr,
    has_left_out: tl.constexpr,
    has_matched: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Write a block of W. It may be written over its logits."""
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    s = _load_logits(
        s_pointer,
        s_stride,
        scale_pointer,
        keep_pointer,
        x_ids_pointer,
        y_ids_pointer,
        offset,
        first_row,
        first_column,
        height,
        width,
        rows,
        columns,
        has_keep,
        has_left_out,
    )
    is_row, is_column = rows < height, columns < width
    row_logs = tl.load(row_logs_pointer + first_row + rows, mask=is_row, other=0.0)
    row_factors = tl.load(row_factors_pointer + first_row + rows, mask=is_row, other=0.0)
    column_logs = tl.load(column_logs_pointer + first_column + columns, mask=is_column, other=0.0)
    column_factors = tl.load(column_factors_pointer + first_column + columns, mask=is_column, other=0.0)
    w = row_factors[:, None] * tl.exp(s - row_logs[:, None])
    w += column_factors[None, :] * tl.exp(s - column_logs[None, :])
    if has_matched:
        x_groups = tl.load(x_groups_pointer + first_row + rows, mask=is_row, other=0)
        y_groups = tl.load(y_groups_pointer + first_column + columns, mask=is_column, other=-1)
        matched = tl.load(matched_pointer + first_row + rows, mask=is_row, other=0.0)
        w -= tl.where(x_groups[:, None] == y_groups[None, :], matched[:, None], 0.0)
    at = w_pointer + rows[:, None].to(tl.int64) * w_stride + columns[None, :]
    tl.store(at, w.to(w_pointer.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def _product(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """``out = a b``, summed and returned in the dtype of `out`."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:  # the interpreter
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _add_product(onto: Tensor, a: Tensor, b: Tensor) -> None:
    """``onto += a b``, summed in the dtype of `onto`."""
    if a.dtype == onto.dtype:
        onto.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(onto, a, b, out_dtype=onto.dtype, out=onto)
    else:
        onto.addmm_(a.to(onto.dtype), b.to(onto.dtype))


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)


class _Common:
    """What both kernels read, and how a tile is launched."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.dtype = sum_dtype(logits.x_BD.dtype)
        self.scale = logits.scale.to(self.dtype)
        left_out = logits.left_out
        self._keep = self.scale if logits.keep_B is None else logits.keep_B.to(torch.int8)
        # where there is nothing to read, any tensor will do
        self._ids = (self.scale, self.scale) if left_out is None else (left_out.x_ids_B, left_out.y_ids_N)
        self._offset = 0 if left_out is None else left_out.offset
        size = (min(TILE_ROWS, len(logits.x_BD)), min(TILE_COLUMNS, len(logits.y_ND)))
        self.buffer = torch.empty(size, dtype=self.dtype, device=logits.x_BD.device)

    def launch(
        self, kernel: Any, s: Tensor, rows: slice, columns: slice, *arguments: Any, **flags: bool
    ) -> None:
        """Run `kernel` on a tile of logits, which are made here."""
        _product(self.logits.x_BD[rows], self.logits.y_ND[columns].T, out=s)
        kernel[_grid(*s.shape)](
            s,
            s.stride(0),
            self.scale,
            self._keep,
            *self._ids,
            self._offset,
            rows.start,
            columns.start,
            *s.shape,
            *arguments,
            has_keep=self.logits.keep_B is not None,
            has_left_out=self.logits.left_out is not None,
            block_rows=BLOCK_ROWS,
            block_columns=BLOCK_COLUMNS,
            num_warps=WARPS,
            **flags,
        )


def log_sums(logits: Logits, *, find_best: bool = False) -> LogSums:
    """See `tiles.log_sums`."""
    assert TILE_COLUMNS % BLOCK_COLUMNS == 0
    common, device = _Common(logits), logits.x_BD.device
    num_rows, num_columns = len(logits.x_BD), len(logits.y_ND)
    # what blocks find is put together once for each row of tiles
    height, num_blocks = common.buffer.shape[0], triton.cdiv(num_columns, BLOCK_COLUMNS)
    row_logs = torch.empty(height, num_blocks, dtype=common.dtype, device=device)
    tops, best = torch.empty_like(row_logs), torch.empty_like(row_logs, dtype=torch.int64)
    column_logs = torch.empty(triton.cdiv(height, BLOCK_ROWS), num_columns, dtype=common.dtype, device=device)
    rows_B = torch.empty(num_rows, dtype=torch.float64, device=device)
    columns_N = torch.full((num_columns,), -torch.inf, dtype=torch.float64, device=device)
    best_B = torch.empty(num_rows, dtype=torch.int64, device=device)
    for rows, columns in cut(num_rows, num_columns, TILE_ROWS, TILE_COLUMNS):
        height = rows.stop - rows.start
        common.launch(
            _log_sums_kernel,
            common.buffer[:height, : columns.stop - columns.start],
            rows,
            columns,
            row_logs,
            tops,
            best,
            num_blocks,
            column_logs,
            num_columns,
            find_best=find_best,
        )
        if columns.stop == num_columns:
            rows_B[rows] = row_logs[:height].double().logsumexp(1)
            found = column_logs[: triton.cdiv(height, BLOCK_ROWS)].double().logsumexp(0)
            columns_N = torch.logaddexp(columns_N, found)
            if find_best:
                block = tops[:height].argmax(1, keepdim=True)
                best_B[rows] = best[:height].gather(1, block).squeeze(1)
    if logits.keep_B is not None:
        rows_B = rows_B.where(logits.keep_B, 0)
    return LogSums(rows_B, columns_N, best_B if find_best else None)


def weighted_sums(
    logits: Logits, weights: Weights, *, x_BD: Tensor, y_ND: Tensor, onto_columns: Tensor | None
) -> Tensor:
    """See `tiles.weighted_sums`."""
    common, matched, device = _Common(logits), weights.matched, x_BD.device
    num_rows, num_columns = len(logits.x_BD), len(logits.y_ND)
    dtype = common.dtype
    groups = (common.scale, common.scale, common.scale)  # not read
    if matched is not None:
        own_groups_N = torch.arange(num_columns, device=device)
        y_groups_N = own_groups_N if matched.y_groups_N is None else matched.y_groups_N
        groups = (matched.x_groups_B, y_groups_N, matched.weights_B.to(dtype))
    logs = [finite(sums).to(dtype) for sums in (weights.row_logs_B, weights.column_logs_N)]
    factors = [weights.rows_B.to(dtype), weights.columns_N.to(dtype)]
    of_y_BD = torch.zeros(num_rows, y_ND.shape[1], dtype=dtype, device=device)
    weights_buffer = (
        common.buffer if x_BD.dtype == dtype else torch.empty_like(common.buffer, dtype=x_BD.dtype)
    )
    for rows, columns in cut(num_rows, num_columns, TILE_ROWS, TILE_COLUMNS):
        tile = slice(0, rows.stop - rows.start), slice(0, columns.stop - columns.start)
        w = weights_buffer[tile]
        common.launch(
            _weights_kernel,
            common.buffer[tile],
            rows,
            columns,
            *logs,
            *factors,
            *groups,
            w,
            w.stride(0),
            has_matched=matched is not None,
        )
        _add_product(of_y_BD[rows], w, y_ND[columns])
        if onto_columns is not None:
            _add_product(onto_columns[columns], w.T, x_BD[rows])
    return of_y_BD
