"""What a person sets about a pre-training run."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.data.settings import DataConfig
from promptmeup.distributed.engine import EngineConfig
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import ModelConfig
from promptmeup.tracking.settings import TrackingConfig
from promptmeup.training.optim import OptimConfig


class PretrainConfig(Config):
    """One pre-training run; a teacher is a run with `model.fusion: false` and the image-text loss alone."""

    out: Path
    """run folder: configuration, journal, description/ (the model without its weights, and the data), checkpoints,
    model/ (the last) and best/ (by retrieval); one start trains there at a time"""
    data: DataConfig
    model: ModelConfig
    start_from: Path | None = None
    """a saved model (RUN/model) whose fitting tensors replace the initial ones, such as the teacher"""
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()
    global_batch: int = Field(gt=1)
    """pairs per step in the world; every rank takes an equal part"""
    micro_batch: int | None = Field(default=None, gt=0)
    """most pairs of a rank in the model at once, where its part of the batch does not fit: the same step (gradient
    caching), for one more forward pass"""
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    """length of the run: either steps or epochs"""
    evaluate_every: int = Field(default=0, ge=0)
    """steps between two evaluations on data.val; 0: only at the end"""
    save_every: int = Field(default=500, ge=0)
    """steps between two checkpoints; 0: only at the end or when stopped"""
    keep_checkpoints: int = Field(default=2, gt=0)
    """newest ones that stay; the best model stays in best/ besides"""
    max_skipped: int = Field(default=5, ge=0)
    """most steps in a row whose loss or gradient is not finite: they change nothing; one more ends the run"""
    peak_tflops: float | None = Field(default=None, gt=0)
    """what one GPU can do in the run's precision, for MFU; None: as its data sheet says, if its name is known"""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.data.image.size != self.model.vision.image_size:
            raise ValueError(
                f"data.image.size = {self.data.image.size} and model.vision.image_size = "
                f"{self.model.vision.image_size} must be equal"
            )
        fused = [n for n, w in self.loss.weights.model_dump().items() if w > 0 and n != "image_text"]
        if fused and not self.model.fusion:
            raise ValueError(
                f"model.fusion is false, but these losses need the fusion half: {', '.join(fused)}; "
                "set their loss.weights to 0, or model.fusion to true"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether a loss on soft labels is switched on."""
        return self.loss.weights.object_entity > 0 or self.loss.weights.image_relation > 0
