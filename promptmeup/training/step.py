"""One optimizer step of pre-training: the whole method in five lines."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.errors import TrainingError
from promptmeup.losses.exchange import Exchange
from promptmeup.losses.total import LossConfig, Losses, captions_to_send, total_loss
from promptmeup.records import Banks, Batch, Features


def forward(
    engine: Any,
    batch: Batch,
    *,
    dtype: torch.dtype,
    on_text: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Run the student on `batch`; images are cast, because a bf16 engine does not cast its inputs."""
    vision = engine.module.vision
    images_BCSS = normalise(batch.images_BCSS, mean=vision.mean, std=vision.std)
    return Features(
        **engine(
            images_BCSS=images_BCSS.to(dtype),
            tokens_BL=batch.tokens_BL,
            token_mask_BL=batch.token_mask_BL,
            boxes_BM4=batch.boxes_BM4,
            box_mask_BM=batch.box_mask_BM,
            on_text=on_text,
        )
    )


def train_step(
    engine: Any,
    batch: Batch,
    *,
    banks: Banks | None,
    losses: LossConfig,
    dtype: torch.dtype,
    exchange: Exchange,
) -> dict[str, Tensor]:
    """Forward, losses, backward, update; return the world's means as scalars on the device.

    The captions travel to the other ranks while the fusion half works, and their gradients come back while its
    backward does.

    Raises:
        TrainingError: the loss is not finite; nothing is updated.
    """
    columns = captions_to_send(batch, exchange, dtype=dtype)
    on_text = columns.send_one if losses.weights.image_text > 0 else None
    features = forward(engine, batch, dtype=dtype, on_text=on_text)
    found = total_loss(features, columns, batch, banks, losses, exchange)
    engine.backward(found.local)
    refuse_nonfinite(found, features, batch)
    engine.step()
    return found.reported | {"temperature": features.temperature.detach()}


def refuse_nonfinite(found: Losses, features: Features, batch: Batch) -> None:
    """Raise, on every rank, where the world's loss is NaN or infinite, naming the rows that are to blame.

    Called when the backward pass is on its way: a GPU then has work to do while its loss is waited for.
    """
    if found.reported["loss/total"].isfinite():
        return
    wrong = {name.removeprefix("loss/"): value.item() for name, value in found.reported.items()}
    terms = [f"{name} = {value}" for name, value in wrong.items() if not torch.tensor(value).isfinite()]
    rows = torch.zeros(len(batch), dtype=torch.bool, device=features.image_BD.device)
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor) and len(value) == len(batch) and value.is_floating_point():
            bad = ~value.isfinite().flatten(1).all(1)
            rows |= bad
    keys = [key for key, bad in zip(batch.keys, rows.tolist(), strict=True) if bad]
    blame = (
        f"the features of {len(keys)} of this rank's {len(batch)} pairs are not finite, of these images: "
        f"{' '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
        if keys
        else "all features of this rank are finite, so look at what the other ranks say"
    )
    raise TrainingError(
        f"{', '.join(terms)}: {blame}. Nothing was trained on this batch and the last checkpoint is untouched; "
        "lower optim.lr, or look at these images, and start again to resume"
    )
