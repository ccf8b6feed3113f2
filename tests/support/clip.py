"""Tiny CLIP and SigLIP directories with random weights, as transformers saves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIZE = 32
TEXT_LENGTH = 24
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT |= {"max_position_embeddings": TEXT_LENGTH}
_VISION = {**_TEXT, "image_size": SIZE, "patch_size": 16}
del _VISION["max_position_embeddings"]


def save_clip(folder: Path) -> Path:
    """Write a CLIP with a byte-level BPE, so that it reads any text."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**_TEXT, **ids, "vocab_size": len(tokenizer), "projection_dim": 12}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**_VISION, "projection_dim": 12}, projection_dim=12)
    )
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    ).save_pretrained(folder)
    return folder


def clip_tokenizer(*, merges: tuple[tuple[str, str], ...] = (("i", "n"), ("p", "h"))) -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=list(merges))


def save_siglip(folder: Path) -> Path:
    """Write a SigLIP with a unigram tokenizer of single letters that, as SigLIP 2's may, keeps capitals."""
    torch.manual_seed(0)
    pieces = ["</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    text = {**_TEXT, **ids, "vocab_size": len(tokenizer), "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION))
    _spread(model)
    torch.nn.init.constant_(model.logit_scale, 3.0)
    torch.nn.init.constant_(model.logit_bias, -10.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Give every tensor weights large enough for different inputs to have different features."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
