"""Soft labels: the teacher's opinion of every object and every image, computed once, kept beside the shards.

    objects: q = softmax(v(crop)  . entities_KD^T  / temperature)      one row a box, in the boxes' order
    images:  q = softmax(v(image) . relations_KD^T / temperature)      one row a sample

The teacher sees stored pixels without augmentation, so the labels are the same in every epoch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from promptmeup.config import Config
from promptmeup.prompts.bank import BankConfig
from promptmeup.prompts.crops import cut_crops, decode, resize_square
from promptmeup.prompts.teacher import Teacher
from promptmeup.prompts.vocabulary import MAX_NAMES
from promptmeup.records import Banks
from promptmeup.shard_format import label_dtype

StoredSample = tuple[bytes, NDArray[np.floating]]
"""an encoded image and its boxes [M, 4]: x0, y0, x1, y1 in its pixels"""


class LabelConfig(Config):
    """What is labelled, against which prompts, and how much of each label is kept."""

    splits: tuple[Path, ...] = Field(min_length=1)
    """folders of packed splits; the first one's entities.tsv is the vocabulary unless another is named"""
    bank: BankConfig = BankConfig()
    temperature: float | None = Field(default=None, gt=0)
    """None: the teacher's own, learned one"""
    num_kept: int = Field(default=32, ge=1, le=256)
    """probabilities stored for a label; 4 bytes each"""
    crop_padding: float = Field(default=0.0, ge=0, le=1)
    """share of a box's width and height added on each side of its crop"""
    batch: int = Field(default=64, ge=1)
    """crops or images that the teacher sees at once"""


def label_temperature(config: LabelConfig, teacher: Teacher) -> float:
    """Return the temperature that the labels are made with."""
    return teacher.temperature if config.temperature is None else config.temperature


def round_down(probs_NT: NDArray[np.float32]) -> NDArray[np.float16]:
    """float32 -> float16, towards zero, so that rows which sum to one do not sum to more."""
    rounded_NT = probs_NT.astype(np.float16)
    lower_NT = np.nextafter(rounded_NT, np.float16(0))
    rounded_NT = np.where(rounded_NT > probs_NT, lower_NT, rounded_NT)
    # float32 softmax itself may exceed one by its own rounding, for example (1, 2^-24)
    over_N = rounded_NT.sum(axis=1, dtype=np.float64) > 1
    ceiling_N1 = np.nextafter(rounded_NT[:, :1], np.float16(0))
    return np.where(over_N[:, None], np.minimum(rounded_NT, ceiling_N1), rounded_NT)


@torch.no_grad()
def soft_labels(similarity_NK: Tensor, *, temperature: float, num_kept: int) -> NDArray[Any]:
    """Return the T = min(num_kept, K) largest entries of softmax(similarity / temperature).

    The softmax is float32 whatever comes in. Probabilities are descending and sum to at most 1 in float16;
    equal ones keep the prompts' order, so that a label never depends on the sorting algorithm.

    Args:
        similarity_NK: cosine of N rows and K <= 65535 prompts.

    Returns:
        [N] of `label_dtype(T)`: ids (positions in the bank) and probs.
    """
    num_rows, num_prompts = similarity_NK.shape
    assert 1 <= num_prompts <= MAX_NAMES, f"{num_prompts} prompts: positions are 16-bit numbers"
    probs_NK, ids_NK = torch.softmax(similarity_NK.float() / temperature, dim=-1).sort(
        dim=-1, descending=True, stable=True
    )
    kept = min(num_kept, num_prompts)
    labels_N = np.empty(num_rows, dtype=label_dtype(kept))
    labels_N["ids"] = ids_NK[:, :kept].cpu().numpy()
    labels_N["probs"] = round_down(probs_NK[:, :kept].cpu().numpy())
    return labels_N


class _Stream:
    """Gathers the teacher's inputs into full batches and turns them into labels, in order."""

    def __init__(self, teacher: Teacher, bank_KD: Tensor, config: LabelConfig) -> None:
        self._teacher = teacher
        self._bank_KD = bank_KD.to(teacher.device).float()
        self._config = config
        self._mean_C11 = torch.tensor(teacher.mean, device=teacher.device).view(-1, 1, 1)
        self._std_C11 = torch.tensor(teacher.std, device=teacher.device).view(-1, 1, 1)
        self._waiting: list[Tensor] = []
        self._labels = [np.empty(0, dtype=label_dtype(min(config.num_kept, len(bank_KD))))]

    def add(self, pixels_NCSS: Tensor) -> None:
        self._waiting.extend(pixels_NCSS)
        while len(self._waiting) >= self._config.batch:
            self._encode()

    def finish(self) -> NDArray[Any]:
        while self._waiting:
            self._encode()
        return np.concatenate(self._labels)

    def _encode(self) -> None:
        batch = self._config.batch
        pixels_BCSS, self._waiting = torch.stack(self._waiting[:batch]), self._waiting[batch:]
        features_BD = self._teacher.encode_images((pixels_BCSS / 255 - self._mean_C11) / self._std_C11)
        self._labels.append(
            soft_labels(
                features_BD.float() @ self._bank_KD.T,
                temperature=label_temperature(self._config, self._teacher),
                num_kept=self._config.num_kept,
            )
        )


@torch.no_grad()
def label_shard(
    samples: Iterable[StoredSample], teacher: Teacher, banks: Banks, config: LabelConfig
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Label the samples of one shard, in order.

    Returns:
        objects, images: arrays of `label_dtype`. Objects have one row a box, sample after sample; an
        object is its crop against the ENTITIES. Images have one row a sample: the whole image, objects
        included, against the RELATIONS.

    Raises:
        ShardError: an image cannot be decoded.
    """
    objects = _Stream(teacher, banks.entities_KD, config)
    images = _Stream(teacher, banks.relations_KD, config)
    for content, boxes_M4 in samples:
        image_CHW = decode(content).to(teacher.device)
        objects.add(cut_crops(image_CHW, boxes_M4, size=teacher.image_size, padding=config.crop_padding))
        images.add(resize_square(image_CHW, size=teacher.image_size)[None])
    return objects.finish(), images.finish()
