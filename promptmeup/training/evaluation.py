"""Encode a whole split over the ranks, in step, and measure retrieval."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from promptmeup.data.evaluation import CaptionBatch, ImageBatch, caption_batches, image_batches
from promptmeup.data.reader import PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.text import TextTokenizer
from promptmeup.distributed.collectives import gather_uneven
from promptmeup.distributed.world import World
from promptmeup.training.geometry import alignment, uniformity
from promptmeup.training.retrieval import match_ranks, recalls

EvaluationBatch = TypeVar("EvaluationBatch", ImageBatch, CaptionBatch)


def _encode(
    batches: Iterator[EvaluationBatch],
    encode: Callable[[EvaluationBatch], Tensor],
    *,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Return vectors [N, D] and image ids [N] of all ranks' batches, in order, each row once.

    Under ZeRO-3 every forward is a collective: the ranks have equally many batches, and what only fills them up
    has no weight and is dropped here.
    """
    vectors, ids = [], []
    for batch in batches:
        keep_B = batch.weights_B > 0
        vectors.append(encode(batch)[keep_B.to(world.device)])
        ids.append(batch.image_ids_B[keep_B].to(world.device))
    return gather_uneven(torch.cat(vectors), world=world), gather_uneven(torch.cat(ids), world=world)


@dataclass(frozen=True)
class Encoded:
    """Vectors of a split's images and matched captions, and whose each is."""

    image_ND: Tensor
    text_MD: Tensor
    image_ids_N: Tensor
    caption_ids_M: Tensor

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """Return the ranks of the matches of each direction's queries."""
        return match_ranks(
            self.image_ND, self.text_MD, image_ids_N=self.image_ids_N, caption_ids_M=self.caption_ids_M
        )


def measure(encoded: Encoded) -> dict[str, float]:
    """Return recalls, and how the vectors lie: alignment, uniformity_image, uniformity_text (see `geometry`)."""
    return recalls(encoded.ranks) | {
        "alignment": alignment(
            encoded.image_ND,
            encoded.text_MD,
            image_ids_N=encoded.image_ids_N,
            caption_ids_M=encoded.caption_ids_M,
        ),
        "uniformity_image": uniformity(encoded.image_ND),
        "uniformity_text": uniformity(encoded.text_MD),
    }


@torch.no_grad()
def encode_split(
    model: Any,
    split: PackedSplit,
    *,
    config: DataConfig,
    tokenizer: TextTokenizer,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int,
    dtype: torch.dtype,
    world: World,
) -> Encoded:
    """Encode every image and every matched caption of `split`; collective.

    Args:
        model: the model, or the engine around it; left in the mode it was in.
        batch: rows a rank encodes at once.
    """
    share = {"batch": batch, "rank": world.rank, "size": world.size}
    was_training = model.training
    model.eval()

    def encode_images(images: ImageBatch) -> Tensor:
        pixels_BCSS = images.images_BCSS.to(world.device, dtype)
        return model(images_BCSS=pixels_BCSS)["image_BD"].float()  # type: ignore[no-any-return]

    def encode_captions(captions: CaptionBatch) -> Tensor:
        tokens_BL = captions.tokens_BL.to(world.device)
        found = model(tokens_BL=tokens_BL, token_mask_BL=captions.token_mask_BL.to(world.device))
        return found["text_BD"].float()  # type: ignore[no-any-return]

    image_ND, image_ids_N = _encode(
        image_batches(split, config=config, mean=mean, std=std, **share),
        encode_images,
        world=world,
    )
    text_MD, caption_ids_M = _encode(
        caption_batches(split, config=config, tokenizer=tokenizer, **share),
        encode_captions,
        world=world,
    )
    model.train(was_training)
    return Encoded(image_ND, text_MD, image_ids_N, caption_ids_M)
