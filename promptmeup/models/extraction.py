"""The two fine-tuned models over fused text states: entities by a CRF, relations by a classifier.

Both are transformers models: `save_pretrained` writes config.json and model.safetensors, and after `import promptmeup`
`AutoModel.from_pretrained` reads them. So arguments have transformers' names: `input_ids`, `pixel_values`, `labels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from promptmeup.models.built_in_place import BuiltInPlace
from promptmeup.models.crf import ConditionalRandomField
from promptmeup.models.fused import FusedEncoder, encoder_from_description

Task = Literal["entities", "relations"]
RelationHead = Literal["linear", "mlp"]
MARKERS = ("<s>", "</s>", "<o>", "</o>")
"""words about the head and the tail, as in the paper's release: subject and object"""


class ExtractionConfig(PreTrainedConfig):  # type: ignore[misc]
    """What both models are built from.

    Args:
        encoder: of `fused.describe_encoder`.
        labels: tags or relations in the order of their ids.
        dropout: before the head.
        max_tokens: longest input in training, special tokens included.
        max_crops: pictures of objects that go in beside the photo.
        image_size, eval_mode: how a photo becomes pixels (data.transforms.ImageConfig).
        source: where it comes from: data, metrics, versions; JSON values.
    """

    def __init__(
        self,
        *,
        encoder: dict[str, Any] | None = None,
        labels: Sequence[str] = (),
        dropout: float = 0.1,
        max_tokens: int = 128,
        max_crops: int = 0,
        eval_mode: str = "center",
        source: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        if labels:
            others["id2label"] = dict(enumerate(labels))
            others["label2id"] = {label: i for i, label in enumerate(labels)}
        super().__init__(**others)
        self.encoder = encoder
        self.dropout = dropout
        self.max_tokens = max_tokens
        self.max_crops = max_crops
        self.eval_mode = eval_mode
        self.source = source or {}

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.id2label[i] for i in range(len(self.id2label)))

    @property
    def text_only(self) -> bool:
        return self.encoder is None or self.encoder["vision"] is None


class EntityConfig(ExtractionConfig):
    model_type = "promptmeup_entities"

    # transformers makes a dataclass of a subclass that has no __init__ of its own
    def __init__(self, **others: Any) -> None:
        super().__init__(**others)


class RelationConfig(ExtractionConfig):
    """A relation model's configuration.

    Args:
        none: the label of pairs that are not related, or None.
        head: linear, or the paper's MLP with one hidden layer.
    """

    model_type = "promptmeup_relations"

    def __init__(self, *, none: str | None = None, head: RelationHead = "linear", **others: Any) -> None:
        super().__init__(**others)
        self.none = none
        self.head = head


@dataclass
class EntityOutput(ModelOutput):  # type: ignore[misc]
    loss: Tensor | None = None
    logits: Tensor | None = None
    """[B, L, T] float32, the CRF's emissions"""
    tags: Tensor | None = None
    """[B, L] int64, where no labels were given: the most probable tags, -1 where there is no word"""


@dataclass
class RelationOutput(ModelOutput):  # type: ignore[misc]
    loss: Tensor | None = None
    logits: Tensor | None = None
    """[B, R] float32"""


class EntityModel(BuiltInPlace):
    """First sub-words' fused states -> dropout -> linear -> CRF over BIO tags."""

    config_class = EntityConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: EntityConfig) -> None:
        super().__init__(config)
        self.encoder: FusedEncoder = encoder_from_description(config.encoder or {})
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(self.encoder.width, len(config.labels))
        self.crf = ConditionalRandomField(config.labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        crop_values: Tensor | None = None,
        crop_mask: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> EntityOutput:
        """Return the negative log-likelihood of `labels`, or without them the most probable tags.

        Args:
            input_ids: [B, L] int64, with `attention_mask`, bool, true on real tokens.
            word_mask: [B, L] bool, true on the first token of each word.
            pixel_values: [B, C, S, S] normalised photos, with `image_mask` [B], bool: rows that have one.
            crop_values: [B, M, C, S, S] pictures of single objects, with `crop_mask` [B, M], bool.
            labels: [B, L] int64 tags, anything where `word_mask` is false.
            weights: [B] of the rows in the loss; None: their mean.
        """
        states_BLH = self.encoder(input_ids, attention_mask, pixel_values, image_mask, crop_values, crop_mask)
        emissions_BLT = self.classifier(self.dropout(states_BLH)).float()
        if labels is None:
            return EntityOutput(logits=emissions_BLT, tags=self.crf(emissions_BLT, None, word_mask))
        loss_B = -self.crf(emissions_BLT, labels, word_mask)
        return EntityOutput(loss=_weighted(loss_B, weights), logits=emissions_BLT)


class RelationModel(BuiltInPlace):
    """The fused states at the two start markers, side by side -> dropout -> linear or MLP -> softmax over relations."""

    config_class = RelationConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: RelationConfig) -> None:
        super().__init__(config)
        self.encoder: FusedEncoder = encoder_from_description(config.encoder or {})
        width, num_labels = self.encoder.width, len(config.labels)
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        if config.head == "mlp":
            layers += [nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(config.dropout)]
        layers.append(nn.Linear(width if config.head == "mlp" else 2 * width, num_labels))
        self.classifier = nn.Sequential(*layers)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        marker_positions: Tensor,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        crop_values: Tensor | None = None,
        crop_mask: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> RelationOutput:
        """Return logits, and the cross-entropy where `labels` [B], int64, are given; other arguments as `EntityModel`.

        Args:
            marker_positions: [B, 2] int64, where <s> and <o> stand.
        """
        states_BLH = self.encoder(input_ids, attention_mask, pixel_values, image_mask, crop_values, crop_mask)
        rows_B1 = torch.arange(len(states_BLH), device=states_BLH.device)[:, None]
        logits_BR = self.classifier(states_BLH[rows_B1, marker_positions].flatten(1)).float()
        if labels is None:
            return RelationOutput(logits=logits_BR)
        loss_B = F.cross_entropy(logits_BR, labels, reduction="none")
        return RelationOutput(loss=_weighted(loss_B, weights), logits=logits_BR)


def _weighted(loss_B: Tensor, weights_B: Tensor | None) -> Tensor:
    return loss_B.mean() if weights_B is None else (loss_B * weights_B).sum()


EXTRACTION_MODELS: tuple[tuple[type[ExtractionConfig], type[Any]], ...] = (
    (EntityConfig, EntityModel),
    (RelationConfig, RelationModel),
)
EXTRACTION_TYPES = tuple(config.model_type for config, _ in EXTRACTION_MODELS)
"""as config.json names them"""
