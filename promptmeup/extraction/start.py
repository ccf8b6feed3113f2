"""What fine-tuning starts from: a pre-training run, an exported or fine-tuned model, or plain encoders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from promptmeup.config import Config
from promptmeup.errors import ConfigError, WeightsError
from promptmeup.extraction.folder import read_whole
from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.extraction import EXTRACTION_TYPES
from promptmeup.models.fused import FusedEncoder, fused_encoder
from promptmeup.models.saving import load_model, load_saved_tokenizer, state_fingerprint
from promptmeup.models.text import TextConfig, build_bert, load_tokenizer
from promptmeup.models.vision import VisionConfig, build_vision
from promptmeup.models.weights import find, model_type


class EncodersConfig(Config):
    """What goes with a plain BERT, where `model` is one and no model of ours."""

    vision: VisionConfig | None = None
    """not needed for text only"""
    fusion_layer: int | None = Field(default=None, ge=1)
    """layers [0, fusion_layer) read the text alone; None: half of them"""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """of hidden states and attention; None: as the weights were trained (BERT: 0.1)"""


@dataclass(frozen=True)
class Start:
    """An encoder with its initial weights, its tokenizer, and where they come from."""

    encoder: FusedEncoder
    vision: VisionConfig | None
    """None for text only"""
    tokenizer: Any
    source: str
    fingerprint: str
    """of the weights"""
    run: Path | None
    """the pre-training run's folder"""


def open_start(source: str, *, encoders: EncodersConfig, text_only: bool) -> Start:
    """Load what `source` names: a run, a saved or exported model, or a BERT by folder, package or hub name.

    Raises:
        WeightsError: nothing there, or a model that cannot be fine-tuned.
        ConfigError: a vision encoder is needed and none is given, or `encoders` are given and not needed.
    """
    folder = model_folder(Path(source).expanduser())
    if folder is not None and encoders != EncodersConfig():
        raise ConfigError(
            f"encoders.* go with a plain BERT, and model={source} is a model of ours, which has its own: leave them out"
        )
    if folder is None:
        encoder, vision, tokenizer = _plain(source, encoders, text_only=text_only)
    elif (folder / "model.json").exists():
        model = load_model(folder)
        encoder, vision = _of_alignment(model, source, text_only=text_only)
        tokenizer = load_saved_tokenizer(folder)
    else:
        encoder, vision, tokenizer = _exported(folder, text_only=text_only)
    run = folder.parent if folder is not None and (folder.parent / "journal.jsonl").exists() else None
    return Start(encoder, vision, tokenizer, source, state_fingerprint(encoder), run)


def model_folder(path: Path) -> Path | None:
    """Return the folder of a model of ours: `path` itself, or what a run has in it; None where it is none."""
    for folder in (path, path / "best", path / "model"):
        if (folder / "model.json").exists() or model_type(folder) in ("promptmeup", *EXTRACTION_TYPES):
            return folder
    if (path / "journal.jsonl").exists():
        raise WeightsError(
            f"{path} is a run that has saved no model yet (no best/ and no model/ in it); let it finish, or export its "
            f"last checkpoint with `python launch/export.py run={path} out=DIR` and give model=DIR"
        )
    return None


def _of_alignment(
    model: AlignmentModel, source: str, *, text_only: bool
) -> tuple[FusedEncoder, VisionConfig | None]:
    if model.fusion is None:
        raise WeightsError(
            f"{source} is a dual encoder (a teacher), which has no fusion half to fine-tune; take the student that was "
            "trained with its labels"
        )
    return fused_encoder(model, text_only=text_only), None if text_only else model.config.vision


def _exported(folder: Path, *, text_only: bool) -> tuple[FusedEncoder, VisionConfig | None, Any]:
    model, tokenizer = read_whole(folder)
    if model.config.model_type == "promptmeup":
        return *_of_alignment(model.alignment, str(folder), text_only=text_only), tokenizer
    description = model.config.encoder
    if text_only != (description["vision"] is None):
        has = "no vision encoder" if description["vision"] is None else "a vision encoder"
        raise ConfigError(
            f"{folder} was fine-tuned with {has}: set data.text_only={str(not text_only).lower()}, or start from "
            "a pre-trained model"
        )
    vision = None if text_only else VisionConfig.model_validate(description["vision_config"])
    return model.encoder, vision, tokenizer


def _plain(
    source: str, config: EncodersConfig, *, text_only: bool
) -> tuple[FusedEncoder, VisionConfig | None, Any]:
    find(source, key="model", instead="a run, a model folder or a BERT")
    if config.vision is None and not text_only:
        raise ConfigError(
            f"model: {source} reads text only; give a vision encoder with encoders.vision, set data.text_only=true, or "
            "start from a pre-trained model"
        )
    text = TextConfig(weights=source, fusion_layer=config.fusion_layer or 1, dropout=config.dropout)
    bert = build_bert(text)
    layers = bert.config.num_hidden_layers
    vision = None if text_only or config.vision is None else build_vision(config.vision)
    encoder = FusedEncoder(bert, fusion_layer=config.fusion_layer or max(1, layers // 2), vision=vision)
    return encoder, config.vision if vision else None, load_tokenizer(text)
