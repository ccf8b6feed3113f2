"""A step on a batch larger than memory: gradient caching, exact for losses that compare all rows with all.

The gradient of a contrast is no sum over micro-batches, so adding theirs up would lose every negative but the
micro-batch's own. Instead, with f the features and θ the parameters, ∂L/∂θ = Σ_rows ∂L/∂f · ∂f/∂θ:

    1. forward of every micro-batch without keeping activations -> all features
    2. the losses of the whole batch -> ∂L/∂f, in little memory
    3. forward of every micro-batch again, backward of Σ f · ∂L/∂f

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". It costs one more forward.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from promptmeup.distributed.engine import one_reduction, update
from promptmeup.losses.exchange import Exchange
from promptmeup.losses.total import LossConfig, captions_to_send, seen_by, total_loss
from promptmeup.records import Banks, Batch, Features, is_per_row
from promptmeup.training.forward import Soundness, forward, temperatures

RandomState = tuple[Tensor, Tensor | None]


def cached_step(
    engine: Any,
    batch: Batch,
    *,
    banks: Banks | None,
    losses: LossConfig,
    dtype: torch.dtype,
    exchange: Exchange,
    micro_batch: int,
) -> dict[str, Tensor]:
    """See `step.train_step`; at most `micro_batch` rows are in the model at once.

    Dropout is the same in both forward passes of a micro-batch, and not that of the whole batch in one. In bf16 the
    micro-batches' gradients are added up in bf16, as DeepSpeed keeps them.
    """
    parts = [batch.rows(first, first + micro_batch) for first in range(0, len(batch), micro_batch)]
    states: list[RandomState] = []
    found_features = []
    for part in parts:
        states.append(_random_state(batch.images_BCSS.device))
        with torch.no_grad():
            found_features.append(forward(engine, part, dtype=dtype))
    features = _joined(found_features)

    columns = captions_to_send(batch, seen_by(losses, exchange), dtype=dtype)
    leaves = {name: leaf for name, leaf in features.tensors().items() if leaf.requires_grad}
    if losses.weights.image_text > 0:
        features = replace(features, text_BD=columns.send_one(features.text_BD))
    found = total_loss(features, columns, batch, banks, losses, exchange)
    Soundness(found).insist(features, batch)
    found_gradients = torch.autograd.grad(found.local, list(leaves.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found_gradients, strict=True) if g is not None}

    with one_reduction(engine):
        for number, part in enumerate(parts):
            _set_random_state(states[number], batch.images_BCSS.device)
            again = forward(engine, part, dtype=dtype).tensors()
            first = number * micro_batch
            products = []
            for name, gradient in gradients.items():
                if is_per_row(name):
                    products.append((again[name] * gradient[first : first + micro_batch]).sum())
                elif number == 0:  # a temperature is one number for all rows
                    products.append((again[name] * gradient).sum())
            engine.backward(torch.stack(products).sum())
    update(engine)
    return found.reported | temperatures(features)


def _joined(parts: list[Features]) -> Features:
    """Return the features of all rows as leaves of a new graph."""
    whole = {}
    for name, first in parts[0].tensors().items():
        value = torch.cat([getattr(part, name) for part in parts]) if is_per_row(name) else first.detach()
        whole[name] = value.requires_grad_() if value.is_floating_point() else value
    return Features(**whole)


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
