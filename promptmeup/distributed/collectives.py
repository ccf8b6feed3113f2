"""The two exchanges of a training step: rows of all ranks for the contrasts, and the world means.

Scale rules, which belong together: the backward of a gather adds up the gradients of all ranks, and a
local loss is ``sum · ranks / world count``, because the engine averages parameter gradients over ranks.
The average is then the exact gradient of the world mean. Tested at 1 = 2 = 4 ranks.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from promptmeup.distributed.world import World
from promptmeup.records import Batch, Features, Gathered, LossTerms


class GatherRows(torch.autograd.Function):
    """[B, ...] on every rank -> [G, ...], in the order of the GLOBAL rank; every rank has the same B.

    Own function because torch's differentiable gathers differ by backend in what they support and how
    they scale, and change names between releases; plain collectives drop the gradient in silence.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:
        ctx.size = size
        gathered = rows.new_empty((size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # summed in float32: bf16 sums would lose a bit with every doubling of the world
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()
        own = wide.new_empty((wide.shape[0] // ctx.size, *wide.shape[1:]))
        dist.reduce_scatter_tensor(own, wide, op=dist.ReduceOp.SUM)
        return own.to(gradient.dtype), None


def _gather_packed(tensors: list[Tensor], world: World) -> list[Tensor]:
    """Gather the rows of several [B, ...] tensors in one exchange; dtypes are promoted to a common one."""
    if world.size == 1:
        return tensors
    packed = torch.cat([tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors], 1)
    rows: Tensor = GatherRows.apply(packed, world.size)
    columns = torch.split(rows, [tensor[0].numel() for tensor in tensors], 1)
    return [part.reshape(len(rows), *tensor.shape[1:]) for part, tensor in zip(columns, tensors, strict=True)]


def gather(features: Features, batch: Batch, world: World) -> Gathered:
    """Exchange what the contrasts need: one gather of the features, a small one of ids and masks.

    Batches must have the same shape on every rank. In a world of one nothing is exchanged.
    """
    floats = [features.image_BD, features.text_BD]
    integers = [batch.image_ids_B, batch.caption_ids_B]
    objects, object_labels = features.object_BMD, batch.object_labels
    if objects is not None and object_labels is not None:
        assert features.object_mask_BM is not None
        floats.append(objects)
        integers.append((features.object_mask_BM & object_labels.keep).long())
    relations, image_labels = features.relation_BD, batch.image_labels
    if relations is not None and image_labels is not None:
        floats.append(relations)
        integers.append(image_labels.keep.long())
    wide = iter(_gather_packed(floats, world))
    narrow = iter(_gather_packed(integers, world))
    pairs = Gathered(
        offset=world.rank * len(features.image_BD),
        image_GD=next(wide),
        text_GD=next(wide),
        image_ids_G=next(narrow),
        caption_ids_G=next(narrow),
    )
    if objects is not None and object_labels is not None:
        pairs = replace(pairs, object_GMD=next(wide), object_keep_GM=next(narrow).bool())
    if relations is not None and image_labels is not None:
        pairs = replace(pairs, relation_GD=next(wide), relation_keep_G=next(narrow).bool())
    return pairs


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


@dataclass(frozen=True)
class WorldMeans:
    """What a step goes on with."""

    local_loss: Tensor
    """for backward; the average of its gradient over the ranks is that of the world's weighted total"""
    reported: dict[str, Tensor]
    """float64 scalars, equal on all ranks, no gradient: loss/total, loss/NAME, and the metrics by name"""


def world_means(loss_terms: LossTerms, world: World) -> WorldMeans:
    """Turn the sums and counts of all ranks into means over the world, in one all-reduce.

    A term or metric without a valid row anywhere is exactly 0.
    """
    parts = [part for parts in loss_terms.terms.values() for part in parts]
    rows = parts + list(loss_terms.metrics.values())
    totals = torch.stack([torch.stack([row.sum.detach().double(), row.count.double()]) for row in rows])
    if world.size > 1:
        dist.all_reduce(totals)
    counts = totals[:, 1].clamp(min=1)
    means = iter(totals[:, 0] / counts)
    scales = iter(world.size / counts)
    local_loss = parts[0].sum.new_zeros(())
    total = totals.new_zeros(())
    reported = {}
    for name, its_parts in loss_terms.terms.items():
        weight = loss_terms.weights[name] / len(its_parts)
        mean = totals.new_zeros(())
        for part in its_parts:
            local_loss = local_loss + weight * next(scales).to(part.sum.dtype) * part.sum
            mean = mean + next(means) / len(its_parts)
        total = total + loss_terms.weights[name] * mean
        reported[f"loss/{name}"] = mean
    metrics = {name: next(means) for name in loss_terms.metrics}
    return WorldMeans(local_loss, {"loss/total": total} | reported | metrics)
