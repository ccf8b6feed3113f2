"""How much of the hardware a run uses: achieved FLOP/s of a rank, and their share of its peak (MFU)."""

from collections.abc import Sequence

import torch

from promptmeup.distributed.peaks import peak_tflops
from promptmeup.distributed.world import World, gpu_names
from promptmeup.losses.cost import bank_shapes, loss_flops
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.cost import RowCost, row_cost
from promptmeup.models.sketch import sketch_of
from promptmeup.models.spans import Span, spans
from promptmeup.records import Banks, Batch


def step_flops(
    cost: RowCost,
    *,
    rows: int,
    length: float,
    losses: float = 0.0,
    micro_batch: int | None = None,
) -> float:
    """Return the floating-point operations of one step of one rank.

    Args:
        cost: of the model, for one pair.
        rows: pairs of this rank.
        length: tokens of the captions, those of the padding included where it is computed.
        losses: of the losses (`loss_flops`), forward and backward.
        micro_batch: to count what gradient caching does, one forward pass more; None: the step itself, as MFU does.
    """
    again = cost.forward_flops(length) if micro_batch is not None and micro_batch < rows else 0.0
    return rows * (cost.step_flops(length) + again) + losses


class Throughput:
    """Turns pairs per second into FLOP/s, knowing how long the captions were.

    Counted as is usual: forward and backward pass, captions as long as they were worked on, nothing that is done twice.

    Args:
        rows: pairs of a rank in each step.
        max_objects: boxes of a photo.
        micro_batch: pairs in the model at once, where they are not all.
        peak: TFLOP/s of one GPU; None: of its data sheet, and where that is not known there is no MFU.
    """

    def __init__(
        self,
        model: AlignmentModel,
        *,
        losses: LossConfig,
        banks: Banks | None,
        rows: int,
        max_objects: int,
        dtype: torch.dtype,
        world: World,
        micro_batch: int | None = None,
        peak: float | None = None,
    ) -> None:
        self._model, self._max_objects = model, max_objects
        self._rows, self._ranks, self._micro_batch = rows, world.size, micro_batch
        self._losses = loss_flops(
            losses,
            rows=rows,
            columns=rows * world.size,
            width=model.config.width,
            objects=max_objects,
            banks=bank_shapes(banks),
            classifies=model.config.prompt_head == "classifier",
        )
        names = gpu_names() if world.device.type == "cuda" else []
        self._peak = peak or (peak_tflops(names[world.device.index or 0], dtype) if names else None)
        self._cost: RowCost | None = None
        self._steps: list[list[Span]] = []

    def note(self, batch: Batch) -> None:
        """Take in the lengths of a step's captions."""
        self._steps.append(worked_on(batch, micro_batch=self._micro_batch))

    def rates(self, pairs_per_second: float) -> dict[str, float]:
        """Return "tflops" of each rank, and "mfu" (0 to 1) where the peak is known, since the call before."""
        steps, self._steps = self._steps, []
        if not steps:
            return {}
        if self._cost is None:  # a second that every rank but the first can do without
            self._cost = row_cost(sketch_of(self._model), max_objects=self._max_objects)
        total = sum(batch_flops(self._cost, spans) + self._losses for spans in steps)
        tflops = pairs_per_second / self._ranks * total / (len(steps) * self._rows) / 1e12
        return {"tflops": tflops} | ({} if self._peak is None else {"mfu": tflops / self._peak})


def worked_on(batch: Batch, *, micro_batch: int | None = None) -> list[Span]:
    """Return (rows, tokens) of the groups that the model works on its captions in; each micro-batch has its own."""
    rows, longest = batch.tokens_BL.shape
    size = micro_batch or rows
    parts = [(first, min(first + size, rows)) for first in range(0, rows, size)]
    return [
        span
        for first, stop in parts
        for span in spans(batch.lengths and batch.lengths[first:stop], rows=stop - first, longest=longest)
    ]


def batch_flops(cost: RowCost, groups: Sequence[Span]) -> float:
    """Return the floating-point operations of a step on rows in `groups`, those of the losses apart."""
    return sum(rows * cost.step_flops(length) for rows, length in groups)
