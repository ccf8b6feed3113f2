"""One optimizer step of pre-training: the whole method in five lines."""

from typing import Any

import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.distributed.collectives import gather, world_means
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig, total_loss
from promptmeup.records import Banks, Batch, Features


def forward(engine: Any, batch: Batch, *, dtype: torch.dtype) -> Features:
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
        )
    )


def train_step(
    engine: Any, batch: Batch, *, banks: Banks | None, losses: LossConfig, dtype: torch.dtype, world: World
) -> dict[str, Tensor]:
    """Forward, one exchange, losses, backward, update; return the world's means as scalars on the device."""
    features = forward(engine, batch, dtype=dtype)
    gathered = gather(features, batch, world)
    terms = total_loss(features, gathered, batch, banks, losses)
    means = world_means(terms, world)
    engine.backward(means.local_loss)
    engine.step()
    return means.reported | {"temperature": features.temperature.detach()}
