"""A model's shapes without its weights: on the meta device, from what is known on this machine; nothing is fetched."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BertConfig, ViTConfig

from promptmeup.errors import WeightsError
from promptmeup.models.alignment import AlignmentModel, ModelConfig
from promptmeup.models.saving import describe, from_description
from promptmeup.models.text import TextConfig, load_tokenizer, random_bert_sizes, with_dropout
from promptmeup.models.vision import VisionConfig, random_vit_sizes
from promptmeup.models.vision_weights import LITE0
from promptmeup.models.weights import EFFICIENTNET_LITE0, RANDOM, find_here

_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# by name on the model hub: what differs from transformers' defaults, which are the base model's
_BERTS: dict[str, dict[str, int]] = {
    "bert-base-uncased": {},
    "bert-base-cased": {"vocab_size": 28996},
    "bert-large-uncased": _LARGE,
    "bert-large-cased": {**_LARGE, "vocab_size": 28996},
}
_VITS: dict[str, dict[str, int]] = {
    "google/vit-base-patch16-224": {},
    "google/vit-base-patch16-224-in21k": {},
    "google/vit-base-patch32-224-in21k": {"patch_size": 32},
    "google/vit-large-patch16-224": _LARGE,
    "google/vit-large-patch16-224-in21k": _LARGE,
    "google/vit-large-patch32-224-in21k": {**_LARGE, "patch_size": 32},
}


def sketch(
    config: ModelConfig,
    *,
    entity_width: int | None = None,
    relation_width: int | None = None,
    num_entities: int | None = None,
    num_relations: int | None = None,
) -> AlignmentModel:
    """Return what `alignment.build_model` would, without values: no weights are read and none fetched.

    Raises:
        WeightsError: the sizes of an encoder are not known on this machine.
        ConfigError: the parts do not fit each other.
    """
    description = {
        "config": config.model_dump(mode="json"),
        "bert": _bert_sizes(config.text).to_dict(),
        # how pixels are normalised changes no shape
        "vision": {"model": _vision_model(config.vision), "mean": [0.5] * 3, "std": [0.5] * 3},
        "entity_width": entity_width,
        "relation_width": relation_width,
        "num_entities": num_entities,
        "num_relations": num_relations,
    }
    with torch.device("meta"):
        return from_description(description)


def sketch_of(model: AlignmentModel) -> AlignmentModel:
    """Return `model` without values, as it was built: in float32, in training mode."""
    with torch.device("meta"):
        return from_description(describe(model))


def _bert_sizes(config: TextConfig) -> Any:
    if config.weights == RANDOM:
        source = config.tokenizer or ""
        folder = find_here(source, key="model.text.tokenizer")
        if folder is None:
            raise _unknown("model.text.tokenizer", source)
        return random_bert_sizes(config, load_tokenizer(config.model_copy(update={"tokenizer": str(folder)})))
    folder = find_here(config.weights, key="model.text.weights")
    name = config.weights.removeprefix("google-bert/")
    if folder is not None:
        sizes = AutoConfig.from_pretrained(folder, local_files_only=True)
        if sizes.model_type != "bert":
            raise WeightsError(
                f"model.text.weights: {config.weights} holds a '{sizes.model_type}', not a BERT"
            )
    elif name in _BERTS:
        sizes = BertConfig(**_BERTS[name])
    else:
        raise _unknown("model.text.weights", config.weights)
    return with_dropout(sizes, config.dropout)


def _vision_model(config: VisionConfig) -> Any:
    """Return what `vision.vision_from_description` calls "model"."""
    key = "model.vision.weights"
    if config.weights == f"package:{EFFICIENTNET_LITE0}":
        return LITE0
    folder = None if config.weights == RANDOM else find_here(config.weights, key=key)
    if config.kind == "timm":
        name = config.architecture or _timm_name(config.weights, folder)
        if name is None:
            raise _unknown(key, config.weights)
        return name
    if config.weights == RANDOM:
        return random_vit_sizes(config).to_dict()
    if folder is not None:
        sizes = AutoConfig.from_pretrained(folder, local_files_only=True)
        if sizes.model_type != "vit":
            raise WeightsError(f"{key}: {config.weights} holds a '{sizes.model_type}', not a ViT")
        return sizes.to_dict()
    if config.weights in _VITS:
        return ViTConfig(**_VITS[config.weights]).to_dict()
    raise _unknown(key, config.weights)


def _timm_name(source: str, folder: Path | None) -> str | None:
    if folder is not None and (folder / "config.json").exists():
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    import timm

    name = source.rpartition("/")[2].partition(".")[0]  # timm/vit_base_patch16_224.augreg_in21k
    return name if timm.is_model(name) else None


def _unknown(key: str, source: str) -> WeightsError:
    return WeightsError(
        f"{key}: the sizes of {source} are not known here, since it is neither on this machine nor one of "
        f"{', '.join([*_BERTS, *_VITS])}; point {key} to a local directory, or let a run fetch it first"
    )
