"""The student's forward pass on a batch, and what is done when its numbers are not finite."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.errors import TrainingError
from promptmeup.losses.total import Losses
from promptmeup.records import Batch, Features


def forward(
    engine: Any, batch: Batch, *, dtype: torch.dtype, on_text: Callable[[Tensor], Tensor] | None = None
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


def refuse_nonfinite(found: Losses, features: Features, batch: Batch) -> None:
    """Raise, on every rank, where the world's loss is NaN or infinite, naming the images that are to blame.

    Raises:
        TrainingError: the loss is not finite.
    """
    if found.reported["loss/total"].isfinite():
        return
    terms = [
        f"{name} = {value.item()}"
        for name, value in found.reported.items()
        if name.startswith("loss/") and not value.isfinite()
    ]
    wrong_B = torch.zeros(len(batch), dtype=torch.bool, device=features.image_BD.device)
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor) and len(value) == len(batch) and value.is_floating_point():
            wrong_B |= ~value.isfinite().flatten(1).all(1)
    keys = [key for key, wrong in zip(batch.keys, wrong_B.tolist(), strict=True) if wrong]
    blame = "all features of this rank are finite; look at what the other ranks say"
    if keys:
        shown = " ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")
        blame = f"{len(keys)} of this rank's {len(batch)} pairs have features that are not finite; images: {shown}"
    raise TrainingError(
        f"{', '.join(terms)}: {blame}. This batch was not trained on and the last checkpoint is untouched; "
        "lower optim.lr, or look at these images, and start again to resume"
    )
