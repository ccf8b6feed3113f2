"""The student's forward pass on a batch, and what is done when its numbers are not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.errors import NotFiniteError
from promptmeup.losses.total import Losses, rows_not_finite
from promptmeup.records import Batch, Features, is_per_row


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
            lengths=batch.lengths,
        )
    )


def temperatures(features: Features) -> dict[str, Tensor]:
    """Return the temperatures that there are, by name."""
    return {name: value.detach() for name, value in features.tensors().items() if not is_per_row(name)}


class Soundness:
    """Whether a step's losses may be trained on, asked of the device now and looked at later.

    On a GPU the answer is on its way while the backward pass works, and waiting for it does not wait for that.
    """

    def __init__(self, found: Losses) -> None:
        self._answer, self._arrived = found.sound, None
        if self._answer.is_cuda:
            self._answer = torch.empty(1, dtype=torch.bool, pin_memory=True)
            self._answer.copy_(found.sound, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        self._found = found

    def insist(self, features: Features, batch: Batch) -> None:
        """Return if all is well.

        Raises:
            NotFiniteError: on every rank, where a loss of the world or a feature of any rank is NaN or infinite; it
                names this rank's images that are to blame.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._answer:
            return
        scalars = self._found.reported | temperatures(features)
        wrong = [f"{name} = {value.item()}" for name, value in scalars.items() if not value.isfinite()]
        rows = rows_not_finite(features).tolist()
        keys = [key for key, is_wrong in zip(batch.keys, rows, strict=True) if is_wrong]
        blame = "all features of this rank are finite"
        if keys:
            shown = " ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")
            blame = (
                f"{len(keys)} of this rank's {len(batch)} pairs have features that are not finite; "
                f"images: {shown}"
            )
        raise NotFiniteError(f"{', '.join(wrong) or 'features that are not finite'}: {blame}")
