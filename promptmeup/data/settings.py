"""What is read for training, and how: the settings of the data."""

from typing import Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.data.reader import PairFilter
from promptmeup.data.remote import StagingConfig
from promptmeup.data.transforms import ImageConfig


class BlendConfig(Config):
    """One more corpus to train on."""

    path: str
    """packed split"""
    share: float = Field(gt=0, lt=1)
    """of all pairs; what the shares leave is data.train's"""


class DataConfig(Config):
    """What is read, and how."""

    train: str
    """packed split to train on: a folder, or a URL such as s3://bucket/packed/train or http://host/packed/train"""
    blend: tuple[BlendConfig, ...] = ()
    """more corpora, mixed into every batch by their shares"""
    cache: StagingConfig = StagingConfig()
    """how shards at a URL come to this node"""
    val: str | None = None
    """packed split for retrieval during training; none is run without it"""
    pairs: PairFilter = "all"
    """train on every pair, or on those whose caption belongs to the image"""
    mismatched: float = Field(default=0.0, ge=0, lt=1)
    """share of the matched pairs that are shown with the caption of another photo of their shard, anew each time: for
    corpora without mismatched pairs, from which matching could not learn"""
    labels: str | None = None
    """folder of soft labels under train/labels, named by the fingerprint of its prompt bank"""
    min_confidence: float = Field(default=0.2, ge=0, le=1)
    """soft labels whose largest probability is below this do not count"""
    max_objects: int = Field(default=3, ge=1, le=64)
    """M, objects per image; those with the largest score x area come first"""
    max_tokens: int = Field(default=40, ge=8, le=512)
    """longer captions are cut"""
    image: ImageConfig = ImageConfig()
    window: int = Field(default=8, ge=1)
    """shards permuted together: larger mixes better, smaller reads more locally"""
    workers: int = Field(default=1, ge=0, le=128)
    """processes that read and decode for each rank; 0 does it in the training process"""
    prefetch: int = Field(default=2, ge=1, le=64)
    """batches each worker keeps ready"""
    checksums: bool = True
    """compare every sample with its CRC-32: some 10 microseconds against 2 milliseconds of decoding"""
    max_damaged: float = Field(default=0.001, ge=0, le=1)
    """share of damaged samples above which training stops; below, each is replaced by another pair"""

    @property
    def training(self) -> tuple[str, ...]:
        """Every packed split that is trained on."""
        return (self.train, *(part.path for part in self.blend))

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(part.share for part in self.blend)
        if total >= 1:
            raise ValueError(
                f"the shares of data.blend sum to {total:g} and leave nothing for data.train: "
                "lower them to less than 1 together"
            )
        return self
