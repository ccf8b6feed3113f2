"""The weights that a run starts from: are they on this node, and how large is the model?"""

from pathlib import Path

import torch
from transformers import AutoConfig, BertConfig, ViTConfig

from promptmeup.doctor.finding import Finding, failed, ok, warning
from promptmeup.errors import ConfigError
from promptmeup.models.alignment import AlignmentModel, ModelConfig
from promptmeup.models.text import TextConfig, load_tokenizer
from promptmeup.models.vision import VisionConfig, VisionEncoder, vision_from_description
from promptmeup.models.vision_weights import LITE0
from promptmeup.models.weights import (
    EFFICIENTNET_LITE0,
    RANDOM,
    find,
    hub_is_offline,
    is_on_hub,
    quiet_transformers,
)
from promptmeup.training.pretrain import PretrainConfig

_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt")


def sources(config: PretrainConfig) -> dict[str, str]:
    """Return what is read at the start, by configuration key; the same source twice is named once."""
    text, vision = config.model.text, config.model.vision
    named = {
        "model.text.weights": text.weights,
        "model.text.tokenizer": text.tokenizer,
        "model.vision.weights": vision.weights,
    }
    found: dict[str, str] = {}
    for key, source in named.items():
        if source is not None and source != RANDOM and source not in found.values():
            found[key] = source
    return found


def present(config: PretrainConfig) -> Finding:
    """Look on this node for every source of weights, without fetching anything."""
    texts, absent, facts = [], [], {}
    for key, source in sources(config).items():
        tokenizer = key == "model.text.tokenizer"
        if is_on_hub(source) and not hub_is_offline():
            try:
                path = find(source, key=key, tokenizer_only=tokenizer, local_only=True)
            except Exception:
                absent.append(f"{key} = {source}")
                continue
        else:
            path = find(source, key=key, tokenizer_only=tokenizer)
        facts[key] = source
        if not tokenizer and path.is_dir() and not any(any(path.glob(pattern)) for pattern in _FILES):
            return failed(
                f"{key}: {path} holds no weights (*.safetensors, *.bin): they were not fetched whole; "
                f"fetch {source} again "
                "on a machine that reaches the hub",
                **facts,
            )
        texts.append(source)
    if config.start_from is not None:
        if not (config.start_from / "model.json").exists():
            return failed(
                f"start_from: {config.start_from} holds no saved model (no model.json): train it first, "
                "or name RUN/best or "
                "RUN/model",
                **facts,
            )
        facts["start_from"] = str(config.start_from)
        texts.append(str(config.start_from))
    if absent:
        return warning(
            f"{', '.join(absent)}: not in the hub's cache of this node; every rank would fetch it at the "
            "start: fetch it "
            "before (set HF_HOME to a shared folder), or name a local directory",
            **facts,
        )
    return ok(
        f"found: {', '.join(texts)}" if texts else "none needed: all of the model starts at random", **facts
    )


def count_parameters(config: ModelConfig) -> int:
    """Return the number of weights of the model, built without memory for them; prompt banks count as `width` wide.

    Raises:
        UserError: a source is not there, or the parts do not fit each other.
    """
    bert = _bert_sizes(config.text)
    with torch.device("meta"):
        from transformers import BertModel

        model = AlignmentModel(
            config,
            bert=BertModel(bert, add_pooling_layer=False),
            vision=_vision(config.vision),
            entity_width=config.width,
            relation_width=config.width,
            num_entities=config.width,
            num_relations=config.width,
        )
    return sum(parameter.numel() for parameter in model.parameters())


def _bert_sizes(config: TextConfig) -> BertConfig:
    if config.weights != RANDOM:
        with quiet_transformers():
            return AutoConfig.from_pretrained(find(config.weights, key="model.text.weights", local_only=True))
    with torch.device("cpu"):
        vocabulary = len(load_tokenizer(config))
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
    )


def _vision(config: VisionConfig) -> VisionEncoder:
    return vision_from_description(
        config, {"model": _vision_sizes(config), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    )


def _vision_sizes(config: VisionConfig) -> object:
    """Return what `vision_from_description` builds from: a ViT's sizes, or timm's name."""
    if config.kind == "transformers":
        if config.weights != RANDOM:
            folder = find(config.weights, key="model.vision.weights", local_only=True)
            return ViTConfig.from_pretrained(folder).to_dict()
        return ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden,
        ).to_dict()
    if config.weights == f"package:{EFFICIENTNET_LITE0}":
        return LITE0
    if config.architecture is not None:
        return config.architecture
    folder = find(config.weights, key="model.vision.weights", local_only=True)
    return _architecture(folder)


def _architecture(folder: Path) -> str:
    import json

    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.vision.architecture: {folder} names none; give timm's name") from error
