"""What a contrast asks of the other ranks: one gather of columns, one sum, one return of the columns' gradients.

The losses do not know how ranks talk: `Exchange` is what they need of it (distributed/collectives.py has the real one).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Exchange(Protocol):
    """The ranks of a world; every rank must call the same methods in the same order, with the same shapes."""

    @property
    def rank(self) -> int:
        """Global rank: 0 .. size - 1 over all nodes."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def gather(self, rows: Tensor) -> Callable[[], Tensor]:
        """Start sending [B, ...] to all; the result waits and returns [G, ...] in the order of the global rank."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""

    def scatter_sum(self, rows: Tensor) -> Callable[[], Tensor]:
        """Start adding up [G, ...] over all ranks; the result waits and returns this rank's own [B, ...]."""


class Columns:
    """Rows of this rank on their way to all ranks, where they are the columns of contrasts.

    `send` starts one gather of everything, packed; work that does not need the columns hides it. In the backward pass
    the columns' gradients of all contrasts start their way back together in `send_back`, and are waited for where
    autograd needs them: at the operation that made the rows, after the backward pass of all that came later.

    Args:
        exchange: the ranks.
        ids_BI: int64, numbers that travel with the rows.
        dtype: of the rows on the way and in the products; None leaves them as they are.
    """

    def __init__(self, exchange: Exchange, ids_BI: Tensor, *, dtype: torch.dtype | None = None) -> None:
        self.exchange = exchange
        self._ids_BI = ids_BI.contiguous()
        self._dtype = dtype
        self._widths: list[int] = []
        self._arrive: Callable[[], Tensor] | None = None
        self._arrived: tuple[list[Tensor], Tensor] | None = None
        self._back: Tensor | None = None
        self._gradients: Callable[[], Tensor] | None = None
        self.rows: tuple[Tensor, ...] = ()
        """as sent; the gradient reaches the senders through these"""

    @property
    def offset(self) -> int:
        """The column of this rank's first row."""
        return self.exchange.rank * len(self._ids_BI)

    @property
    def num_columns(self) -> int:
        """G."""
        return self.exchange.size * len(self._ids_BI)

    def send(self, *rows_BD: Tensor) -> None:
        """Start to gather the rows of one or more sets of features, of one dtype."""
        assert not self.rows, "columns are sent once"
        self.rows = _Depart.apply(self, *rows_BD)

    def send_one(self, rows_BD: Tensor) -> Tensor:
        """`send` one set and return it, for going on with."""
        self.send(rows_BD)
        return self.rows[0]

    def receive(self) -> tuple[list[Tensor], Tensor]:
        """Return the columns [G, D] of each set and the ids [G, I], waiting for them the first time."""
        if self._arrived is None:
            assert self._arrive is not None, "send the columns first"
            packed = self._arrive()
            dtype, sizes = self._dtype, [width * self._item_size for width in self._widths]
            *parts, ids = torch.split(packed, [*sizes, packed.shape[1] - sum(sizes)], dim=1)
            assert dtype is not None
            # the bytes of a row in turn: nothing is copied, the columns are strided views
            columns = [part.view(dtype) for part in parts]
            self._arrived = columns, ids.contiguous().view(torch.int64)
        return self._arrived

    def slot(self, position: int) -> Tensor:
        """Return a matrix [G, D] for a set's gradients, zeros at first: what contrasts have to add to."""
        if self._back is None:
            assert self._dtype is not None, "send the columns first"
            dtype = torch.promote_types(self._dtype, torch.float32)
            self._back = self._ids_BI.new_zeros(self.num_columns, sum(self._widths), dtype=dtype)
        return torch.split(self._back, self._widths, dim=1)[position]

    def send_back(self) -> None:
        """Start to add up the slots over all ranks and to return the sums to the owners of the rows."""
        assert self._back is not None
        self._gradients, self._back = self.exchange.scatter_sum(self._back), None

    def _depart(self, rows_BD: Sequence[Tensor]) -> None:
        dtype = self._dtype or rows_BD[0].dtype
        self._dtype, self._item_size = dtype, dtype.itemsize
        self._widths = [rows.shape[1] for rows in rows_BD]
        parts = [rows.to(dtype).contiguous().view(torch.uint8) for rows in rows_BD]
        self._arrive = self.exchange.gather(torch.cat([*parts, self._ids_BI.view(torch.uint8)], dim=1))

    def _returned(self) -> Sequence[Tensor] | None:
        if self._gradients is None:
            return None
        wait, self._gradients = self._gradients, None
        return torch.split(wait(), self._widths, dim=1)


class _Depart(torch.autograd.Function):
    """The rows themselves; backward adds what comes back from the other ranks."""

    @staticmethod
    def forward(ctx: Any, columns: Columns, *rows_BD: Tensor) -> tuple[Tensor, ...]:
        ctx.columns = columns
        columns._depart(rows_BD)
        return tuple(rows.view_as(rows) for rows in rows_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        returned = ctx.columns._returned()
        if returned is None:
            return None, *gradients
        return None, *(
            gradient + back.to(gradient.dtype) for gradient, back in zip(gradients, returned, strict=True)
        )
