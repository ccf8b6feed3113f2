"""One optimizer step of pre-training: the whole method in five lines."""

from typing import Any

import torch
from torch import Tensor

from promptmeup.distributed.engine import skip_update, update
from promptmeup.errors import NotFiniteError
from promptmeup.losses.exchange import Exchange
from promptmeup.losses.total import LossConfig, captions_to_send, seen_by, total_loss
from promptmeup.records import Banks, Batch
from promptmeup.training.cached import cached_step
from promptmeup.training.forward import Soundness, forward, temperatures


def train_step(
    engine: Any,
    batch: Batch,
    *,
    banks: Banks | None,
    losses: LossConfig,
    dtype: torch.dtype,
    exchange: Exchange,
    micro_batch: int | None = None,
) -> dict[str, Tensor]:
    """Forward, losses, backward, update; return the world's means as scalars on the device.

    The captions travel to the other ranks while the fusion half works, and their gradients come back while its
    backward does. With a `micro_batch` smaller than the batch see `cached.cached_step`: the same step in less memory.

    Raises:
        NotFiniteError: the loss or a feature is not finite; nothing is updated, and the next step may follow.
    """
    if micro_batch is not None and micro_batch < len(batch):
        return cached_step(
            engine,
            batch,
            banks=banks,
            losses=losses,
            dtype=dtype,
            exchange=exchange,
            micro_batch=micro_batch,
        )
    columns = captions_to_send(batch, seen_by(losses, exchange), dtype=dtype)
    on_text = columns.send_one if losses.weights.image_text > 0 else None
    features = forward(engine, batch, dtype=dtype, on_text=on_text)
    found = total_loss(features, columns, batch, banks, losses, exchange)
    soundness = Soundness(found)
    engine.backward(found.local)
    try:
        soundness.insist(features, batch)
    except NotFiniteError:
        skip_update(engine)
        raise
    update(engine)
    return found.reported | temperatures(features)
