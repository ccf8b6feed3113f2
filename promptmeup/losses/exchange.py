"""What a contrast asks of the other ranks: one gather of columns, one sum, one return of the columns' gradients.

The losses do not know how ranks talk: `Exchange` is what they need of it (distributed/collectives.py has the real one).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from promptmeup.losses.tiles import sum_dtype


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


class Alone:
    """The exchange of a rank that keeps to itself, whatever the world is."""

    rank, size = 0, 1

    def gather(self, rows: Tensor) -> Callable[[], Tensor]:
        return lambda: rows

    def sum(self, values: Tensor) -> Tensor:
        return values

    def scatter_sum(self, rows: Tensor) -> Callable[[], Tensor]:
        return lambda: rows


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
        self._sets: list[tuple[int, torch.dtype]] = []  # width and dtype of each on the way
        self._num_slots = 0
        self._sent: tuple[Tensor, ...] = ()
        self._arrive: Callable[[], Tensor] | None = None
        self._arrived: tuple[list[Tensor], Tensor] | None = None
        self._back: Tensor | None = None
        self._gradients: Callable[[], Tensor] | None = None

    @property
    def offset(self) -> int:
        """The column of this rank's first row."""
        return self.exchange.rank * len(self._ids_BI)

    @property
    def num_columns(self) -> int:
        """G."""
        return self.exchange.size * len(self._ids_BI)

    def send(self, *rows_BD: Tensor, constant: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Start to gather the rows of one or more sets of features; return them, for going on with.

        Args:
            rows_BD: of one dtype; the gradient finds back to them.
            constant: further sets, after these ones; they travel in their own dtype and get no gradient.
        """
        assert not self._sets, "columns are sent once"
        assert len({rows.dtype for rows in rows_BD}) == 1, "sets of several dtypes"
        wire = [rows.detach().to(self._dtype or rows.dtype) for rows in rows_BD] + [
            c.detach() for c in constant
        ]
        self._sets = [(rows.shape[1], rows.dtype) for rows in wire]
        self._num_slots = len(rows_BD) if any(rows.requires_grad for rows in rows_BD) else 0
        parts = [rows.contiguous().view(torch.uint8) for rows in (*wire, self._ids_BI)]
        self._arrive = self.exchange.gather(torch.cat(parts, dim=1))
        self._sent = _Depart.apply(self, *rows_BD)
        return self._sent

    def send_one(self, rows_BD: Tensor) -> Tensor:
        """`send` one set."""
        return self.send(rows_BD)[0]

    def take_sent(self) -> tuple[Tensor, ...]:
        """Return the rows as sent, once: they know these columns, so keeping them here would keep both alive."""
        sent, self._sent = self._sent, ()
        return sent

    def receive(self) -> tuple[list[Tensor], Tensor]:
        """Return the columns [G, D] of each set and the ids [G, I], waiting for them the first time."""
        if self._arrived is None:
            assert self._arrive is not None, "send the columns first"
            packed, self._arrive = self._arrive(), None
            sizes = [width * dtype.itemsize for width, dtype in self._sets]
            *parts, ids = torch.split(packed, [*sizes, packed.shape[1] - sum(sizes)], dim=1)
            # the bytes of a row in turn: nothing is copied, the columns are strided views
            columns = [part.view(dtype) for part, (_, dtype) in zip(parts, self._sets, strict=True)]
            self._arrived = columns, ids.contiguous().view(torch.int64)
        return self._arrived

    def slot(self, position: int) -> Tensor | None:
        """Return the matrix [G, D] that contrasts have to add a set's gradient to, zeros at first; None: no need."""
        if position >= self._num_slots:
            return None
        widths = [width for width, _ in self._sets[: self._num_slots]]
        if self._back is None:
            dtype = sum_dtype(self._sets[0][1])
            self._back = self._ids_BI.new_zeros(self.num_columns, sum(widths), dtype=dtype)
        return torch.split(self._back, widths, dim=1)[position]

    def send_back(self) -> None:
        """Start to add up the slots over all ranks and to return the sums to the owners of the rows."""
        if self._back is not None:
            self._gradients, self._back = self.exchange.scatter_sum(self._back), None

    def take_gradients(self) -> Sequence[Tensor] | None:
        """Wait for what was sent back and return it, [B, D] of each set with a slot; None where nothing was."""
        if self._gradients is None:
            return None
        wait, self._gradients = self._gradients, None
        return torch.split(wait(), [width for width, _ in self._sets[: self._num_slots]], dim=1)


class _Depart(torch.autograd.Function):
    """The rows themselves; backward adds what comes back from the other ranks."""

    @staticmethod
    def forward(ctx: Any, columns: Columns, *rows_BD: Tensor) -> tuple[Tensor, ...]:
        ctx.columns = columns
        return tuple(rows.view_as(rows) for rows in rows_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        returned = ctx.columns.take_gradients()
        if returned is None:
            return None, *gradients
        return None, *(
            gradient + back.to(gradient.dtype) for gradient, back in zip(gradients, returned, strict=True)
        )
