"""All contrasts of a step as one differentiable function: one sum over the ranks forward, one exchange back.

A pair of feature sets is compared in both directions, rows with columns and columns with rows. The loss is

    L = 1/2 [ mean_i (r_i - Σ_j q_ij s_ij) + mean_j (c_j - Σ_i p_ij s_ij) ]       s_ij = x_i·y_j / τ
    r_i = log Σ_j exp s_ij                                c_j = log Σ_i exp s_ij

with i and j over the rows and columns of the whole world, and q, p the targets, whose kind is what the pairs differ in.
Of this a rank computes its own rows i against all columns j, so r_i is its own, and c_j a sum over the ranks. With
w_i and v_j the weights in the two means,

    ∂L/∂s_ij = 1/2 [ w_i (exp(s_ij - r_i) - q_ij) + v_j (exp(s_ij - c_j) - p_ij) ] = G_ij
    ∂L/∂x = G y / τ         ∂L/∂y = Gᵀ x / τ, added up over the ranks         ∂L/∂τ = -Σ_i x_i·∂L/∂x_i / τ

The last because s is linear in x and 1/τ (Euler's theorem), so no further pass over the matrix is needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from promptmeup.losses.exchange import Columns, Exchange


class Gradients(NamedTuple):
    """Of one pair on one rank."""

    x: Tensor
    """of the shape of the pair's `x`, float32 or float64"""
    temperature: Tensor
    """shape [1]"""


class Pair(Protocol):
    """Two feature sets with their targets, for one step; the loss is differentiated by `x` and `temperature`."""

    @property
    def x(self) -> Tensor:
        """Rows of this rank."""

    @property
    def temperature(self) -> Tensor:
        """Shape [1]."""

    @property
    def columns(self) -> Columns | None:
        """What the rows are compared with, if that is gathered from all ranks."""

    def measure(self) -> list[Tensor]:
        """Look at this rank's rows, and return float64 tensors that have to be added up over all ranks."""

    def value(self, totals: Sequence[Tensor]) -> Tensor:
        """Return the world's mean, a float64 scalar, given the sums of what `measure` returned."""

    def gradients(self, factor: Tensor) -> Gradients:
        """Return `factor` times this rank's part of the gradient; that of gathered columns goes to their slot."""


# c_j travels as a sum of exponentials. In float64 they reach from e^-708 to e^709, logits from -1000 to 1000 (the
# temperature's clamp at 0.001): two sums, for logits above and below 0, hold all, without a maximum to agree on first.
_MIDDLE = 500.0


def to_sums(log_sums_N: Tensor) -> Tensor:
    """Return [2, N] float64 whose sum over ranks `from_sums` turns into the log-sum-exp over ranks."""
    upper = (log_sums_N - _MIDDLE).exp().where(~(log_sums_N < 0), 0)
    lower = (log_sums_N + _MIDDLE).exp().where(log_sums_N < 0, 0)
    return torch.stack([upper, lower])


def from_sums(sums_2N: Tensor) -> Tensor:
    """Return log-sum-exps [N]; -inf where all terms were."""
    return torch.logaddexp(sums_2N[0].log() + _MIDDLE, sums_2N[1].log() - _MIDDLE)


class _Contrasts(torch.autograd.Function):
    """Inputs are each pair's x and temperature, and the rows that were sent as columns; outputs are the means."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Sequence[Pair], exchange: Exchange, riders: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.pairs, ctx.exchange = pairs, exchange
        ctx.sent = [(rows.shape, rows.dtype, rows.device) for rows in tensors[2 * len(pairs) :]]
        messages = [pair.measure() for pair in pairs]
        flat = [part for message in messages for part in message] + [riders.double()]
        summed = exchange.sum(torch.cat([part.flatten() for part in flat]))
        parts = iter(torch.split(summed, [part.numel() for part in flat]))
        values = [
            pair.value([next(parts).view_as(part) for part in message])
            for pair, message in zip(pairs, messages, strict=True)
        ]
        totals = next(parts).view_as(riders)
        ctx.mark_non_differentiable(totals)
        return *values, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        pairs: Sequence[Pair] = ctx.pairs
        factors = [gradient * ctx.exchange.size for gradient in upstream[: len(pairs)]]
        found: dict[int, Gradients] = {}
        for number, pair in enumerate(pairs):
            if pair.columns is not None:
                found[number] = pair.gradients(factors[number])
        # these gradients travel while the others are computed
        for columns in _all_columns(pairs):
            columns.send_back()
        for number, pair in enumerate(pairs):
            if pair.columns is None:
                found[number] = pair.gradients(factors[number])
        leaves: list[Tensor] = []
        for number, pair in enumerate(pairs):
            gradients = found[number]
            leaves.append(gradients.x.to(pair.x.dtype))
            leaves.append(gradients.temperature.to(pair.temperature.dtype))
        # what comes back is added where the rows were sent from
        sent = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.sent]
        return None, None, None, *leaves, *sent


def _all_columns(pairs: Sequence[Pair]) -> list[Columns]:
    return list(dict.fromkeys(pair.columns for pair in pairs if pair.columns is not None))


def contrast(
    pairs: Sequence[Pair], *, exchange: Exchange, riders: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the mean of each pair over the whole world, and the sums of `riders` over the ranks.

    The means are float64 scalars, equal on all ranks. Their gradient is that of ``ranks * mean`` through this
    rank's rows, so that the average over ranks, which the engine takes, is the gradient of the mean: exactly, with
    negatives from all ranks, and however unevenly the rows that count lie on them.

    Args:
        pairs: each used once. One with a teacher adds one more sum over the ranks, of a single number.
        exchange: the ranks; all of them must call this with like pairs.
        riders: numbers to add up over the ranks along the way, any shape; no gradient flows through them.
    """
    tensors = [tensor for pair in pairs for tensor in (pair.x, pair.temperature)]
    sent = [rows for columns in _all_columns(pairs) for rows in columns.take_sent()]
    *means, totals = _Contrasts.apply(tuple(pairs), exchange, riders.detach(), *tensors, *sent)
    return tuple(means), totals
