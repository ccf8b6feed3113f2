"""The folder of a fine-tuned model: all that predicting needs, as transformers writes and reads it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from promptmeup.errors import WeightsError
from promptmeup.extraction.pictures import Pictures
from promptmeup.models.extraction import EXTRACTION_MODELS, EntityModel, RelationConfig, RelationModel, Task
from promptmeup.models.processor import save_processor
from promptmeup.models.weights import quiet_transformers


@dataclass(frozen=True)
class FinetunedModel:
    """A model in evaluation mode with what it needs around it."""

    model: EntityModel | RelationModel
    tokenizer: Any
    task: Task
    labels: tuple[str, ...]
    none: str | None
    """the relation that means none, where the labels have one"""

    @property
    def pictures(self) -> Pictures | None:
        """How it looks at photos; None for a model of text only."""
        vision = self.model.encoder.vision
        if vision is None:
            return None
        config = self.model.config
        size = config.encoder["vision_config"]["image_size"]
        return Pictures(size=size, eval_mode=config.eval_mode, max_crops=config.max_crops)


def save_finetuned(
    folder: Path, model: EntityModel | RelationModel, *, state: Mapping[str, Tensor], tokenizer: Any
) -> None:
    """Write the folder whole, in the place of an older one; call it on one rank."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(new, state_dict=dict(state))
        config = model.config
        if model.encoder.vision is None:
            tokenizer.save_pretrained(new)
        else:
            size = config.encoder["vision_config"]["image_size"]
            save_processor(
                new,
                tokenizer,
                size=size,
                eval_mode=config.eval_mode,
                mean=model.encoder.vision.mean,
                std=model.encoder.vision.std,
            )
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_finetuned(folder: Path, *, device: torch.device | None = None) -> FinetunedModel:
    """Load RUN/best, RUN (which has one), or an exported folder.

    Raises:
        WeightsError: there is no fine-tuned model, or it cannot be read.
    """
    place = next((path for path in (folder, folder / "best") if (path / "config.json").exists()), None)
    if place is None:
        raise WeightsError(
            f"{folder} holds no fine-tuned model (no config.json in it or in its best/); point to the folder of a run "
            "of launch/finetune.py, or to its best/"
        )
    models = {config.model_type: model for config, model in EXTRACTION_MODELS}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(place)
            if config.model_type not in models:
                raise WeightsError(
                    f"{place} holds a '{config.model_type}' model, which extracts nothing yet: fine-tune it with "
                    "launch/finetune.py first"
                )
            model = models[config.model_type].from_pretrained(place)
            tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"cannot read the model in {place}: {error}") from error
    is_relation = isinstance(config, RelationConfig)
    return FinetunedModel(
        model=model.to(device or torch.device("cpu")).eval(),
        tokenizer=tokenizer,
        task="relations" if is_relation else "entities",
        labels=config.labels,
        none=config.none if is_relation else None,
    )
