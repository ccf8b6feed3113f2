"""What a person sets about packing, and which of it decides the content of the shards."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.corpora.raw import RawCorpus
from promptmeup.packing.detector import DetectorConfig
from promptmeup.packing.entities import EntityConfig
from promptmeup.shard_format import file_sha256

Stage = Literal["all", "photos", "boxes", "entities"]
STAGES = ("photos", "boxes", "entities")


class PackConfig(Config):
    """How shards/pack.py makes shards of a raw corpus."""

    corpus: RawCorpus
    out: Path
    """folder that gets one folder a split"""
    splits: tuple[str, ...] = Field(default=("train", "val"), min_length=1)
    stage: Stage = "all"
    """photos: pack these alone, boxes and entities later; boxes, entities: make them, anew where they are there
    with other settings, and leave the photos as they are"""
    redo: bool = False
    """with stage=boxes or entities: make them anew although the settings are the same; a Slurm job does it once, and
    without Slurm the same command begins all splits anew each time"""
    shorter_side: int = Field(default=288, ge=32, le=4096)
    """pixels; larger photos are reduced to it"""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    detector: DetectorConfig | None = None
    """finds the boxes of images for which the corpus brings none"""
    entities: EntityConfig = EntityConfig()
    samples_per_shard: int = Field(default=1000, ge=1)
    max_reject_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """share of the pairs that may be lost"""
    processes: int | None = Field(default=None, ge=1, le=1024)
    """null: one for each core"""
    task: int = Field(default=0, ge=0)
    """with `num_tasks`: number of this machine or Slurm array task, from 0"""
    num_tasks: int = Field(default=1, ge=1)
    """machines that share the work; whoever is last finishes the split"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.makes("boxes") and self.detector is None and self.corpus.boxes is None:
            raise ValueError(
                "objects must come from somewhere: set detector.weights to YOLO weights, or corpus.boxes to a "
                "file of known boxes, or pack without them for now: stage=photos"
            )
        if self.task >= self.num_tasks:
            raise ValueError(
                f"task = {self.task} must be below num_tasks = {self.num_tasks}: tasks count from 0"
            )
        if self.redo and self.stage not in ("boxes", "entities"):
            raise ValueError("redo = true says nothing without stage=boxes or stage=entities")
        return self

    def makes(self, stage: str) -> bool:
        """Return whether `stage` is part of this job."""
        return self.stage in ("all", stage)

    def content_settings(self) -> dict[str, Any]:
        """Return by stage, JSON-able, what decides the content of the shards; the rest says how to work."""
        data = self.model_dump(mode="json")
        corpus = data["corpus"]
        boxes = corpus.pop("boxes")
        boxes_file = self.corpus.root / self.corpus.boxes if self.corpus.boxes else None
        detector = data["detector"] and {
            key: value for key, value in data["detector"].items() if key not in ("batch", "device")
        }
        if self.detector:
            weights = Path(self.detector.weights)
            detector |= {"weights": weights.name, "weights_sha256": _sha256(weights)}
        names = ("shorter_side", "jpeg_quality", "samples_per_shard")
        return {
            "photos": {"corpus": corpus} | {name: data[name] for name in names},
            "boxes": {"corpus": boxes, "corpus_sha256": _sha256(boxes_file), "detector": detector},
            "entities": {"model": data["entities"]["model"]},
        }


def _sha256(path: Path | None) -> str | None:
    """Return the hash of a file: under the same name another file may lie tomorrow. None where it is not here."""
    return file_sha256(path) if path and path.is_file() else None
