"""The folder of a fine-tuned model: all that predicting needs, as transformers writes and reads it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from promptmeup.errors import WeightsError
from promptmeup.extraction.pictures import Pictures
from promptmeup.models.extraction import EXTRACTION_TYPES, EntityModel, RelationConfig, RelationModel, Task
from promptmeup.models.processor import save_processor
from promptmeup.models.weights import model_type, quiet_transformers, some
from promptmeup.shard_format import replace_folder


@dataclass(frozen=True)
class FinetunedModel:
    """A model in evaluation mode with what it needs around it."""

    folder: Path
    """with its config.json"""
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
    replace_folder(folder, new)


def load_finetuned(folder: Path, *, device: torch.device | None = None) -> FinetunedModel:
    """Load RUN/best, RUN (which has one), or an exported folder.

    Raises:
        WeightsError: there is no fine-tuned model, or it cannot be read.
    """
    place = _with_config(folder)
    if place is None:
        raise WeightsError(
            f"{folder} holds no fine-tuned model (no config.json in it or in its best/); point to the folder of a run "
            "of launch/finetune.py, or to its best/"
        )
    found_type = model_type(place)
    if found_type is not None and found_type not in EXTRACTION_TYPES:
        raise WeightsError(
            f"{place} holds a '{found_type}' model, which extracts nothing yet: fine-tune it with launch/finetune.py "
            "first"
        )
    model, tokenizer = read_whole(place)
    config = model.config
    is_relation = isinstance(config, RelationConfig)
    return FinetunedModel(
        folder=place,
        model=model.to(device or torch.device("cpu")).eval(),
        tokenizer=tokenizer,
        task="relations" if is_relation else "entities",
        labels=config.labels,
        none=config.none if is_relation else None,
    )


def read_whole(folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer in a folder of transformers' format.

    Raises:
        WeightsError: they cannot be read, or weights are missing.
    """
    try:
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise WeightsError(f"cannot read the model in {folder}: {error}") from error
    # transformers fills what is missing with random numbers
    if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise WeightsError(
            f"{folder}/model.safetensors does not fit its config.json; missing or unknown: {some(wrong)}; the two "
            "files come from different runs: copy the whole folder again"
        )
    return model, tokenizer


def finetuned_folder(folder: Path) -> Path | None:
    """Return where `load_finetuned` finds a model of ours; None where there is none."""
    place = _with_config(folder)
    return place if place is not None and model_type(place) in EXTRACTION_TYPES else None


def _with_config(folder: Path) -> Path | None:
    return next((path for path in (folder, folder / "best") if (path / "config.json").exists()), None)
