"""The contrastive losses to compare with, each in its strongest setting, called as their documentation says."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.contrast import Pair, contrast
from promptmeup.losses.exchange import Columns
from promptmeup.losses.image_text import IdPair
from promptmeup.losses.soft_label import LabelPair
from promptmeup.records import SoftLabels
from tests.benchmarks.peers.peer import MissingPeerError, require

Sets = list[tuple[Tensor, Tensor]]
"""(x, y) of each loss: unit rows [b, D] of this rank, partners in order"""
Loss = Callable[[Sets, Tensor], Tensor]
"""-> the sum of the losses, for backward; the second argument is the scale, shape [1]"""


def ours(world: World, *, dtype: torch.dtype | None = None, watch_accuracy: bool = False) -> Loss:
    """All losses in one call: one gather, one sum, one way back.

    Training watches the accuracy of the first, which no peer computes.
    """
    exchange = WorldExchange(world)

    def loss(sets: Sets, scale: Tensor) -> Tensor:
        rows = len(sets[0][0])
        ids = torch.arange(rows, device=scale.device) + world.rank * rows
        columns = Columns(exchange, torch.stack([ids, ids], dim=1), dtype=dtype)
        columns.send(*(y for _, y in sets))
        pairs = [
            IdPair(
                x,
                columns=columns,
                position=number,
                temperature=1 / scale,
                watch_accuracy=watch_accuracy and number == 0,
            )
            for number, (x, _) in enumerate(sets)
        ]
        losses, _ = contrast(pairs, exchange=exchange, riders=scale.new_zeros(0))
        return torch.stack(losses).sum()

    return loss


def the_method(world: World, *, prompts: int = 1000) -> Loss:
    """As `ours` for the first set; the others' rows are compared with prompts that all ranks have."""
    exchange = WorldExchange(world)
    generator = torch.Generator().manual_seed(0)

    def loss(sets: Sets, scale: Tensor) -> Tensor:
        (x, y), *others = sets
        ids = torch.arange(len(x)) + world.rank * len(x)
        columns = Columns(exchange, torch.stack([ids, ids], dim=1))
        columns.send(y)
        pairs: list[Pair] = [IdPair(x, columns=columns, temperature=1 / scale, watch_accuracy=False)]
        for rows, _ in others:
            bank = torch.nn.functional.normalize(
                torch.randn(prompts, x.shape[1], generator=generator), dim=-1
            )
            probs, entries = (10 * rows.detach() @ bank.T).softmax(1).topk(32)
            keep = torch.ones(len(rows), dtype=torch.bool)
            labels = SoftLabels(entries, probs, keep)
            pairs.append(LabelPair(rows, bank_KD=bank, labels=labels, keep_N=keep, temperature=1 / scale))
        losses, _ = contrast(pairs, exchange=exchange, riders=scale.new_zeros(0))
        return torch.stack(losses).sum()

    return loss


def _open_clip() -> ModuleType:
    """Load open_clip's loss.py alone: the package imports what only its models need."""
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPeerError("open_clip_torch is not installed; `make bench-loss` installs it") from error
    path = next(file for file in files if str(file) == "open_clip/loss.py").locate()
    spec = importlib.util.spec_from_file_location("open_clip_loss", str(path))
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def open_clip(world: World, *, autocast: bool = False) -> Loss:
    """ClipLoss as its maintainers train: local loss, differentiable gather."""
    clip_losses: list[torch.nn.Module] = []

    def loss(sets: Sets, scale: Tensor) -> Tensor:
        while len(clip_losses) < len(sets):
            clip_losses.append(
                _open_clip().ClipLoss(
                    local_loss=True,
                    gather_with_grad=True,
                    cache_labels=True,
                    rank=world.rank,
                    world_size=world.size,
                )
            )
        with torch.autocast(scale.device.type, torch.bfloat16, enabled=autocast):
            found = [clip(x, y, scale) for clip, (x, y) in zip(clip_losses, sets, strict=False)]
        return torch.stack(found).sum()

    return loss


def inf_cl(world: World) -> Loss:
    """Tiles and a ring, CUDA only; one direction a call. World of one: its kernels without the ring."""
    flash = require("inf_cl", "inf_cl").cal_flash_loss

    def loss(sets: Sets, scale: Tensor) -> Tensor:
        assert world.size == 1 or not dist.is_initialized()
        both = [flash(x, y, scale=scale).mean() + flash(y, x, scale=scale).mean() for x, y in sets]
        return torch.stack(both).sum() / 2

    return loss


def _both_directions(cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """Return the loss by a cross-entropy of (inputs, weights of a linear layer, labels), which has one direction."""

    def loss(sets: Sets, scale: Tensor) -> Tensor:
        total = scale.new_zeros(())
        for x, y in sets:
            labels = torch.arange(len(x), device=x.device)
            x, y = x.to(torch.bfloat16), y.to(torch.bfloat16)
            for a, b in ((x, y), (y, x)):
                total = total + cross_entropy((a * scale).to(a.dtype), b, labels) / 2
        return total

    return loss


def cut_cross_entropy(impl: str = "cce") -> Loss:
    """Cross-entropy of a linear layer without its logits, once for each direction; no gradients are filtered."""
    linear_cross_entropy = require("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    return _both_directions(partial(linear_cross_entropy, filter_eps=None, impl=impl))


def liger(*, chunks: int = 1) -> Loss:
    """Liger's fused linear cross-entropy, once for each direction; `chunks` trades its memory for time."""
    module = require("liger_kernel.ops.fused_linear_cross_entropy", "liger-kernel")

    def cross_entropy(inputs: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
        found = module.LigerFusedLinearCrossEntropyFunction.apply(
            *(inputs, weights, labels, None, None, -100, 0.0, 0.0, "mean", None, False),
            # bfloat16 sums of the columns' gradients would be wrong by more than a per cent
            torch.float32,
            *(False, False, False, None, None, chunks),
        )
        loss: Tensor = found[0] if isinstance(found, tuple) else found
        return loss

    return _both_directions(cross_entropy)
