"""A list of examples -> one `records.Batch`: padding, masks, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import has_area
from promptmeup.records import Batch, SoftLabels, Substitute

Label = tuple[NDArray[np.int64], NDArray[np.float32]]
"""ids [..., T] and probabilities [..., T] of soft labels."""


@dataclass(frozen=True)
class Example:
    """One (image, caption) pair, augmented."""

    key: str
    image_id: int
    caption_id: int
    text: str
    image_CSS: Tensor
    """uint8"""
    color_3: NDArray[np.float32]
    """factors of brightness, contrast and saturation that are still to be applied"""
    boxes_M4: NDArray[np.float32]
    """all boxes of the image in stored order, as fractions of the square; without area where cut off"""
    object_labels: Label | None = None
    """[M, T], in the boxes' order"""
    image_label: Label | None = None
    """[T]"""


def _object_labels(examples: Sequence[Example], *, max_objects: int) -> tuple[Tensor, Tensor]:
    """Return ids and probabilities [B, M, T], zeros where there is no object."""
    first = examples[0].object_labels
    assert first is not None
    shape = (len(examples), max_objects, first[0].shape[-1])
    ids_BMT = torch.zeros(shape, dtype=torch.int64)
    probs_BMT = torch.zeros(shape, dtype=torch.float32)
    for row, example in enumerate(examples):
        assert example.object_labels is not None
        ids_MT, probs_MT = (array[:max_objects] for array in example.object_labels)
        ids_BMT[row, : len(ids_MT)] = torch.from_numpy(ids_MT)
        probs_BMT[row, : len(probs_MT)] = torch.from_numpy(probs_MT)
    return ids_BMT, probs_BMT


def collate(
    examples: Sequence[Example],
    *,
    tokenizer: TextTokenizer,
    max_tokens: int,
    max_objects: int,
    min_confidence: float,
    substitutes: tuple[Substitute, ...] = (),
) -> Batch:
    """Return the examples as one batch, images as uint8, with the first `max_objects` boxes of each, in stored order.

    Rows are sorted by the length of their captions, so that a model may work on short and long ones apart.

    A soft label is kept when its largest probability reaches `min_confidence` and its object is there.
    """
    tokens_BL, token_mask_BL = tokenizer([e.text for e in examples], max_length=max_tokens)
    lengths_B, order_B = token_mask_BL.sum(1).sort(stable=True)
    tokens_BL, token_mask_BL = tokens_BL[order_B], token_mask_BL[order_B]
    examples = [examples[row] for row in order_B.tolist()]
    boxes_BM4 = torch.zeros((len(examples), max_objects, 4), dtype=torch.float32)
    box_mask_BM = torch.zeros((len(examples), max_objects), dtype=torch.bool)
    for row, example in enumerate(examples):
        boxes_M4 = example.boxes_M4[:max_objects]
        there_M = has_area(boxes_M4)
        boxes_BM4[row, : len(boxes_M4)] = torch.from_numpy(boxes_M4 * there_M[:, None])
        box_mask_BM[row, : len(boxes_M4)] = torch.from_numpy(there_M)
    object_labels = image_labels = None
    if examples[0].image_label is not None:
        # Labels are stored in half precision: one of exactly `min_confidence` is stored a little below it.
        threshold = float(np.float16(min_confidence))
        ids_BMT, probs_BMT = _object_labels(examples, max_objects=max_objects)
        object_labels = SoftLabels(ids_BMT, probs_BMT, (probs_BMT.amax(-1) >= threshold) & box_mask_BM)
        labels = [e.image_label for e in examples if e.image_label is not None]
        assert len(labels) == len(examples)
        ids_BT = torch.from_numpy(np.stack([ids for ids, _ in labels]))
        probs_BT = torch.from_numpy(np.stack([probs for _, probs in labels]))
        image_labels = SoftLabels(ids_BT, probs_BT, probs_BT.amax(-1) >= threshold)
    colors_B3 = torch.from_numpy(np.stack([e.color_3 for e in examples]))
    return Batch(
        images_BCSS=torch.stack([e.image_CSS for e in examples]),
        color_B3=None if (colors_B3 == 1).all() else colors_B3,
        tokens_BL=tokens_BL,
        token_mask_BL=token_mask_BL,
        image_ids_B=torch.tensor([e.image_id for e in examples], dtype=torch.int64),
        caption_ids_B=torch.tensor([e.caption_id for e in examples], dtype=torch.int64),
        boxes_BM4=boxes_BM4,
        box_mask_BM=box_mask_BM,
        keys=tuple(e.key for e in examples),
        object_labels=object_labels,
        image_labels=image_labels,
        substitutes=substitutes,
        lengths=tuple(lengths_B.tolist()),
    )
