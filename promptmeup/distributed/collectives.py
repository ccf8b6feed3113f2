"""What ranks tell each other in a training step (`WorldExchange`) and in an evaluation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from promptmeup.distributed.world import World


class WorldExchange:
    """The exchanges of a training step between the ranks of `world`: three, whatever the number of losses.

    Plain collectives, which know nothing of gradients: torch's differentiable ones differ by backend in what they
    support and how they scale, and change their names between releases. In a world of one nothing is exchanged.
    """

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size

    def gather(self, rows: Tensor) -> Callable[[], Tensor]:
        """Start sending [B, ...] to all; the result waits and returns [G, ...] in the order of the GLOBAL rank."""
        if self.size == 1:
            return lambda: rows
        rows = rows.contiguous()
        gathered = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        work = dist.all_gather_into_tensor(gathered, rows, async_op=True)
        return _wait_for(work, gathered, rows)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def scatter_sum(self, rows: Tensor) -> Callable[[], Tensor]:
        """Start adding up [G, ...] over all ranks; the result waits and returns this rank's own [B, ...]."""
        if self.size == 1:
            return lambda: rows
        rows = rows.contiguous()
        if dist.get_backend() == "gloo":
            # gloo's reduce-scatter is an all-reduce whose most it throws away: twice the bytes, and two to five
            # times as slow (2 and 4 ranks on loopback) as sending every rank its part and adding up there
            parts = torch.empty_like(rows)
            wait = _wait_for(dist.all_to_all_single(parts, rows, async_op=True), parts, rows)
            return lambda: wait().view(self.size, -1, *rows.shape[1:]).sum(0)
        own = rows.new_empty((len(rows) // self.size, *rows.shape[1:]))
        work = dist.reduce_scatter_tensor(own, rows, op=dist.ReduceOp.SUM, async_op=True)
        return _wait_for(work, own, rows)


def _wait_for(work: Any, result: Tensor, source: Tensor) -> Callable[[], Tensor]:
    """Return what waits for `work` and returns `result`."""
    held = result, source  # the work reads its source until it is done

    def wait() -> Tensor:
        work.wait()
        return held[0]

    return wait


def gather_uneven(rows: Tensor, *, world: World) -> Tensor:
    """[n_r, ...] on rank r -> the rows of all ranks, in the order of the global rank; no gradient."""
    if world.size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=world.device) for _ in range(world.size)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=world.device))
    longest = int(max(count.item() for count in counts))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count.item())] for part, count in zip(parts, counts, strict=True)])
