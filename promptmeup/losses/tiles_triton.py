"""`tiles` on a GPU: cuBLAS makes a tile of logits, one Triton kernel reads it, cuBLAS multiplies what it wrote.

A tile fits into the second-level cache of an H100 (50 MB), so the 10 to 14 bytes that the kernels move for every
logit seldom reach the memory. The softmaxes are taken in float32 from float32 logits whatever the vectors' dtype, and
what is matched is subtracted before the weights are rounded: p - 1 of a row that is learnt well is a small difference.

Nothing here waits for the GPU. The kernels run in Triton's interpreter as well (TRITON_INTERPRET=1): that is how they
are tested on machines without one.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from promptmeup.losses.tiles import LeftOut, Logits, LogSums, Weights

TILE_ROWS, TILE_COLUMNS = 2048, 4096
"""32 MB of float32 logits"""
BLOCK_ROWS, BLOCK_COLUMNS = 64, 128
"""what one program of a kernel reads: 32 KB"""


@triton.jit  # type: ignore[untyped-decorator]
def _load_logits(  # type: ignore[no-untyped-def]
    s_pointer,
    s_stride,
    scale_pointer,
    keep_pointer,
    x_ids_pointer,
    y_ids_pointer,
    partners,
    rows,
    columns,
    num_rows,
    num_columns,
    has_keep: tl.constexpr,
    has_left_out: tl.constexpr,
):
    """Return a block of scaled logits; -inf outside of the tile and for what takes no part."""
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    s = tl.load(s_pointer + rows[:, None].to(tl.int64) * s_stride + columns[None, :], mask=inside, other=0.0)
    s = s * tl.load(scale_pointer)
    takes_part = inside
    if has_keep:
        keep = tl.load(keep_pointer + rows, mask=rows < num_rows, other=0)
        takes_part = takes_part & (keep[:, None] != 0)
    if has_left_out:
        x_ids = tl.load(x_ids_pointer + rows, mask=rows < num_rows, other=0)
        y_ids = tl.load(y_ids_pointer + columns, mask=columns < num_columns, other=0)
        is_partner = columns[None, :] - rows[:, None] == partners
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
    partners,
    num_rows,
    num_columns,
    row_logs_pointer,
    tops_pointer,
    best_pointer,
    row_logs_stride,
    column_logs_pointer,
    column_logs_stride,
    first_column,
    has_keep: tl.constexpr,
    has_left_out: tl.constexpr,
    find_best: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Write each block's log-sum-exps: rows to [row, block of columns], columns to [block of rows, column]."""
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
        partners,
        rows,
        columns,
        num_rows,
        num_columns,
        has_keep,
        has_left_out,
    )
    # finite, so that -inf minus it stays -inf and not NaN
    row_tops = tl.maximum(tl.max(s, 1), -3.0e38)
    row_sums = tl.sum(tl.exp(s - row_tops[:, None]), 1)
    column_tops = tl.maximum(tl.max(s, 0), -3.0e38)
    column_sums = tl.sum(tl.exp(s - column_tops[None, :]), 0)
    at = rows * row_logs_stride + column_block
    tl.store(row_logs_pointer + at, row_tops + tl.log(row_sums), mask=rows < num_rows)
    tl.store(
        column_logs_pointer + row_block * column_logs_stride + columns,
        column_tops + tl.log(column_sums),
        mask=columns < num_columns,
    )
    if find_best:
        best = tl.argmax(s, 1)
        tl.store(tops_pointer + at, tl.max(s, 1), mask=rows < num_rows)
        best += first_column + column_block * block_columns
        tl.store(best_pointer + at, best, mask=rows < num_rows)


@triton.jit  # type: ignore[untyped-decorator]
def _weights_kernel(  # type: ignore[no-untyped-def]
    s_pointer,
    s_stride,
    scale_pointer,
    keep_pointer,
    x_ids_pointer,
    y_ids_pointer,
    partners,
    num_rows,
    num_columns,
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
    """Write a block of W."""
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    s = _load_logits(
        s_pointer,
        s_stride,
        scale_pointer,
        keep_pointer,
        x_ids_pointer,
        y_ids_pointer,
        partners,
        rows,
        columns,
        num_rows,
        num_columns,
        has_keep,
        has_left_out,
    )
    is_row, is_column = rows < num_rows, columns < num_columns
    row_logs = tl.load(row_logs_pointer + rows, mask=is_row, other=0.0)
    row_factors = tl.load(row_factors_pointer + rows, mask=is_row, other=0.0)
    column_logs = tl.load(column_logs_pointer + columns, mask=is_column, other=0.0)
    column_factors = tl.load(column_factors_pointer + columns, mask=is_column, other=0.0)
    w = row_factors[:, None] * tl.exp(s - row_logs[:, None])
    w += column_factors[None, :] * tl.exp(s - column_logs[None, :])
    if has_matched:
        x_groups = tl.load(x_groups_pointer + rows, mask=is_row, other=0)
        y_groups = tl.load(y_groups_pointer + columns, mask=is_column, other=-1)
        matched = tl.load(matched_pointer + rows, mask=is_row, other=0.0)
        w -= tl.where(x_groups[:, None] == y_groups[None, :], matched[:, None], 0.0)
    at = w_pointer + rows[:, None].to(tl.int64) * w_stride + columns[None, :]
    tl.store(at, w.to(w_pointer.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def _tiles(num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, num_rows, TILE_ROWS):
        for column in range(0, num_columns, TILE_COLUMNS):
            yield (
                slice(row, min(row + TILE_ROWS, num_rows)),
                slice(column, min(column + TILE_COLUMNS, num_columns)),
            )


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


def _masks(
    keep_B: Tensor | None, left_out: LeftOut | None, rows: slice, columns: slice, unused: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return what `_load_logits` reads of a tile's rows and columns; `unused` where there is nothing to read."""
    keep = unused if keep_B is None else keep_B[rows]
    if left_out is None:
        return keep, unused, unused, 0
    partners = left_out.offset + rows.start - columns.start
    return keep, left_out.x_ids_B[rows], left_out.y_ids_N[columns], partners


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)


def log_sums(logits: Logits, *, find_best: bool = False) -> LogSums:
    """See `tiles.log_sums`."""
    x_BD, y_ND, device = logits.x_BD, logits.y_ND, logits.x_BD.device
    num_rows, num_columns = len(x_BD), len(y_ND)
    dtype = _sum_dtype(x_BD.dtype)
    scale = logits.scale.to(dtype)
    keep_B = None if logits.keep_B is None else logits.keep_B.to(torch.int8)
    # what the blocks of a tile find is put together once a row of tiles and once at the end: two launches a tile
    tile_blocks = _grid(TILE_ROWS, TILE_COLUMNS)
    num_blocks = tile_blocks[1] * triton.cdiv(num_columns, TILE_COLUMNS)
    row_logs = torch.empty(TILE_ROWS, num_blocks, dtype=dtype, device=device)
    tops, best = torch.empty_like(row_logs), torch.empty_like(row_logs, dtype=torch.int64)
    column_logs = torch.full(
        (tile_blocks[0] * triton.cdiv(num_rows, TILE_ROWS), num_columns),
        -torch.inf,
        dtype=dtype,
        device=device,
    )
    rows_B = torch.empty(num_rows, dtype=torch.float64, device=device)
    best_B = torch.empty(num_rows, dtype=torch.int64, device=device)
    buffer = torch.empty(TILE_ROWS, TILE_COLUMNS, dtype=dtype, device=device)
    for rows, columns in _tiles(num_rows, num_columns):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        s = buffer[:height, :width]
        _product(x_BD[rows], y_ND[columns].T, out=s)
        if columns.start == 0:
            row_logs.fill_(-torch.inf)
            tops.fill_(-torch.inf)
        block = columns.start // TILE_COLUMNS * tile_blocks[1]
        keep, x_ids, y_ids, partners = _masks(keep_B, logits.left_out, rows, columns, scale)
        _log_sums_kernel[_grid(height, width)](
            s,
            s.stride(0),
            scale,
            keep,
            x_ids,
            y_ids,
            partners,
            height,
            width,
            row_logs[:, block:],
            tops[:, block:],
            best[:, block:],
            num_blocks,
            column_logs[rows.start // TILE_ROWS * tile_blocks[0] :, columns],
            num_columns,
            columns.start,
            has_keep=keep_B is not None,
            has_left_out=logits.left_out is not None,
            find_best=find_best,
            block_rows=BLOCK_ROWS,
            block_columns=BLOCK_COLUMNS,
        )
        if columns.stop == num_columns:
            rows_B[rows] = row_logs[:height].double().logsumexp(1)
            if find_best:
                of_best = tops[:height].argmax(1, keepdim=True)
                best_B[rows] = best[:height].gather(1, of_best).squeeze(1)
    parts = [part.double().logsumexp(0) for part in torch.split(column_logs, TILE_COLUMNS, dim=1)]
    if logits.keep_B is not None:
        rows_B = rows_B.where(logits.keep_B, 0)
    return LogSums(rows_B, torch.cat(parts), best_B if find_best else None)


def weighted_sums(
    logits: Logits, weights: Weights, *, x_BD: Tensor, y_ND: Tensor, onto_columns: Tensor | None
) -> Tensor:
    """See `tiles.weighted_sums`."""
    device, matched = x_BD.device, weights.matched
    num_rows, num_columns = len(logits.x_BD), len(logits.y_ND)
    dtype = _sum_dtype(x_BD.dtype)
    scale = logits.scale.to(dtype)
    keep_B = None if logits.keep_B is None else logits.keep_B.to(torch.int8)
    row_logs_B, column_logs_N = (
        logs.where(logs != -torch.inf, 0).to(dtype) for logs in (weights.row_logs_B, weights.column_logs_N)
    )
    rows_B, columns_N = weights.rows_B.to(dtype), weights.columns_N.to(dtype)
    x_groups_B, y_groups_N, matched_B = scale, scale, scale  # not read
    if matched is not None:
        x_groups_B, matched_B = matched.x_groups_B, matched.weights_B.to(dtype)
        own_groups_N = torch.arange(num_columns, device=device)
        y_groups_N = own_groups_N if matched.y_groups_N is None else matched.y_groups_N
    of_y_BD = torch.zeros(num_rows, y_ND.shape[1], dtype=dtype, device=device)
    buffer = torch.empty(TILE_ROWS, TILE_COLUMNS, dtype=dtype, device=device)
    weights_buffer = buffer if x_BD.dtype == dtype else torch.empty_like(buffer, dtype=x_BD.dtype)
    for rows, columns in _tiles(num_rows, num_columns):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        s, w = buffer[:height, :width], weights_buffer[:height, :width]
        _product(logits.x_BD[rows], logits.y_ND[columns].T, out=s)
        keep, x_ids, y_ids, partners = _masks(keep_B, logits.left_out, rows, columns, scale)
        _weights_kernel[_grid(height, width)](
            s,
            s.stride(0),
            scale,
            keep,
            x_ids,
            y_ids,
            partners,
            height,
            width,
            row_logs_B[rows],
            column_logs_N[columns],
            rows_B[rows],
            columns_N[columns],
            x_groups_B if matched is None else x_groups_B[rows],
            y_groups_N if matched is None else y_groups_N[columns],
            matched_B if matched is None else matched_B[rows],
            w,
            w.stride(0),
            has_keep=keep_B is not None,
            has_left_out=logits.left_out is not None,
            has_matched=matched is not None,
            block_rows=BLOCK_ROWS,
            block_columns=BLOCK_COLUMNS,
        )
        _add_product(of_y_BD[rows], w, y_ND[columns])
        if onto_columns is not None:
            _add_product(onto_columns[columns], w.T, x_BD[rows])
    return of_y_BD
