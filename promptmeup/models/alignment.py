"""The student, and without its fusion half the teacher: photo and caption -> features for every loss."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptmeup.config import Config
from promptmeup.errors import ConfigError
from promptmeup.models.fusion import FusionEncoder
from promptmeup.models.heads import TEMPERATURE_RANGE, Heads, Temperature, pool_boxes, unit
from promptmeup.models.spans import spans
from promptmeup.models.text import TextConfig, TextEncoder, build_bert
from promptmeup.models.vision import VisionConfig, VisionEncoder, build_vision
from promptmeup.models.weights import RANDOM


class ModelConfig(Config):
    """The whole model; `fusion: false` is a dual encoder, which is what a teacher is."""

    text: TextConfig
    vision: VisionConfig
    width: int = Field(default=256, ge=8)
    """D, of the image-text space and of a teacher's prompts"""
    fusion: bool = True
    text_pooling: Literal["cls", "mean"] = "cls"
    """the caption's vector: the state of [CLS], or the mean over its real tokens"""
    image_pooling: Literal["cls", "patches"] = "cls"
    """what the relation head reads: the fused [CLS] state, or the mean of the fused patches"""
    prompt_head: Literal["prompts", "classifier"] = "prompts"
    """how fused states meet prompts: projected to where the teacher has them, or by the paper's MLP over all of them"""
    temperature: float = Field(default=0.07, ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])
    """where the temperatures start"""
    learn_temperature: bool = True
    """false: all temperatures stay at `temperature`, whatever model a run starts from"""


class AlignmentModel(nn.Module):
    """Text half, vision encoder, fusion half and heads; parameters are named text, vision, fusion, heads.

    Args:
        config: the configuration it was built from.
        bert: a BertModel without pooler; its layers are divided between the text and the fusion half.
        vision: the vision encoder.
        entity_width, relation_width: widths of the prompt banks; a fusion model needs both.
        num_entities, num_relations: their numbers of prompts; a fusion model with classifiers needs both.

    Raises:
        ConfigError: the fusion half has no layer, or what it needs of a bank is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        bert: Any,
        vision: VisionEncoder,
        entity_width: int | None = None,
        relation_width: int | None = None,
        num_entities: int | None = None,
        num_relations: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.bert_description: dict[str, Any] = bert.config.to_dict()
        self.entity_width, self.relation_width = entity_width, relation_width
        self.num_entities, self.num_relations = num_entities, num_relations
        hidden: int = bert.config.hidden_size
        layers = bert.encoder.layer
        split = config.text.fusion_layer
        self.text = TextEncoder(bert, fusion_layer=split)
        self.vision = vision
        self.fusion: FusionEncoder | None = None
        fused = None
        if config.fusion:
            if split >= len(layers):
                raise ConfigError(
                    f"model.text.fusion_layer is {split} and the BERT has {len(layers)} layers, so nothing is "
                    f"left to fuse; choose 1 to {len(layers) - 1}, or model.fusion=false for a dual encoder"
                )
            classifies = config.prompt_head == "classifier"
            first, second = (num_entities, num_relations) if classifies else (entity_width, relation_width)
            if first is None or second is None:
                needed = "numbers of prompts" if classifies else "widths"
                raise ConfigError(
                    f"a fusion model needs the {needed} of both prompt banks: label the corpus first"
                )
            fused = (first, second)
            self.fusion = FusionEncoder(
                nn.ModuleList(layers[split:]), vision_width=vision.width, hidden=hidden
            )
        self.heads = Heads(
            vision_width=vision.width,
            text_width=hidden,
            width=config.width,
            temperature=config.temperature,
            learn_temperature=config.learn_temperature,
            fused=fused,
            classifiers=config.prompt_head == "classifier",
        )

    def forward(
        self,
        images_BCSS: Tensor | None = None,
        tokens_BL: Tensor | None = None,
        token_mask_BL: Tensor | None = None,
        boxes_BM4: Tensor | None = None,
        box_mask_BM: Tensor | None = None,
        on_text: Callable[[Tensor], Tensor] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return fields of records.Features.

        Photos alone give `image_BD`, captions alone `text_BD` (retrieval, teachers); both give all that
        the model has, and the objects too if boxes are given. A dict, because DeepSpeed's ZeRO-3 hooks
        look for tensors in dicts and tuples only. Vectors and temperatures are float32.

        Args:
            images_BCSS: normalised by `vision.mean` and `vision.std`.
            tokens_BL: int64, with `token_mask_BL`, bool, true on real tokens.
            boxes_BM4: x0, y0, x1, y1 in [0, 1] of the photo, with `box_mask_BM`, bool.
            on_text: called with `text_BD` before the fusion half runs, so that what starts there is hidden by
                it; what it returns becomes `text_BD`.
            lengths: real tokens of each caption, ascending, where the host knows them: captions are then worked on
                in groups of about the same length; nothing but dropout's random numbers depends on it.
        """
        features: dict[str, Tensor] = {}
        if images_BCSS is not None:
            vector_BH, tokens_BPH = self.vision(images_BCSS)
            features["image_BD"] = unit(self.heads.image(vector_BH))
        if tokens_BL is not None:
            assert token_mask_BL is not None
            groups = _groups(tokens_BL, token_mask_BL, lengths)
            states = [(self.text(tokens, mask), mask) for tokens, mask in groups]
            text_BD = unit(self.heads.text(torch.cat([self._pool_text(*group) for group in states])))
            features["text_BD"] = text_BD if on_text is None else on_text(text_BD)
        assert features, "give photos, captions or both"
        if images_BCSS is None or tokens_BL is None:
            return features
        features["temperature"] = self.heads.temperature()
        if self.fusion is not None:
            image_tokens_BPH = torch.cat([vector_BH.unsqueeze(1), tokens_BPH], dim=1)
            images = torch.split(image_tokens_BPH, [len(mask) for _, mask in states])
            fused = [self.fusion(*group, image) for group, image in zip(states, images, strict=True)]
            cls_BH = torch.cat([text_BLH[:, 0] for text_BLH, _ in fused])
            # the first image token is the photo's vector, not a patch
            patches_BPH = torch.cat([image_BPH[:, 1:] for _, image_BPH in fused])
            features |= self._fused(cls_BH, patches_BPH, boxes_BM4, box_mask_BM)
        return features

    def encode_images(self, images_BCSS: Tensor) -> Tensor:
        """Return unit vectors [B, D] of normalised photos."""
        image_BD: Tensor = self(images_BCSS)["image_BD"]
        return image_BD

    def encode_texts(self, tokens_BL: Tensor, token_mask_BL: Tensor) -> Tensor:
        """Return unit vectors [B, D] of captions or prompts."""
        text_BD: Tensor = self(None, tokens_BL, token_mask_BL)["text_BD"]
        return text_BD

    def fixed(self) -> set[str]:
        """Return the names of tensors that are as the configuration says, and not taken from another model."""
        if self.config.learn_temperature:
            return set()
        return {f"{name}.value" for name, part in self.named_modules() if isinstance(part, Temperature)}

    def backbone_modules(self) -> list[nn.Module]:
        """Return the modules whose weights came pre-trained; optimizers give them a lower learning rate."""
        modules: list[nn.Module] = []
        if self.config.text.weights != RANDOM:
            modules.append(self.text)
            if self.fusion is not None:
                modules.append(self.fusion.layers)
        if self.config.vision.weights != RANDOM:
            modules.append(self.vision)
        return modules

    def _pool_text(self, states_BLH: Tensor, token_mask_BL: Tensor) -> Tensor:
        if self.config.text_pooling == "cls":
            return states_BLH[:, 0]
        weights_BL1 = token_mask_BL.unsqueeze(-1).float()
        mean_BH = (states_BLH.float() * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1).clamp(min=1)
        return mean_BH.to(states_BLH.dtype)

    def _fused(
        self, cls_BH: Tensor, patches_BPH: Tensor, boxes_BM4: Tensor | None, box_mask_BM: Tensor | None
    ) -> dict[str, Tensor]:
        image_BH = cls_BH if self.config.image_pooling == "cls" else patches_BPH.mean(dim=1)
        features = {"matching_logits_B2": self.heads.matching(cls_BH).float()}
        classifies = self.config.prompt_head == "classifier"
        if classifies:
            features["relation_logits_BK"] = self.heads.relation(image_BH).float()
        else:
            features["relation_BD"] = unit(self.heads.relation(image_BH))
            features["relation_temperature"] = self.heads.relation_temperature()
        if boxes_BM4 is not None:
            assert box_mask_BM is not None
            pooled_BMH, valid_BM = pool_boxes(patches_BPH, boxes_BM4, box_mask_BM, grid=self.vision.grid)
            objects = self.heads.object(pooled_BMH)
            objects = objects.float() if classifies else unit(objects)
            # where, not a product: exact zeros and exactly no gradient for objects that do not count
            name = "object_logits_BMK" if classifies else "object_BMD"
            features[name] = torch.where(valid_BM.unsqueeze(-1), objects, 0)
            features["object_mask_BM"] = valid_BM
            if not classifies:
                features["object_temperature"] = self.heads.object_temperature()
        return features


def _groups(
    tokens_BL: Tensor, token_mask_BL: Tensor, lengths: Sequence[int] | None
) -> list[tuple[Tensor, Tensor]]:
    """Return token ids and masks in groups of neighbouring rows, cut at the longest caption of each."""
    cut = spans(lengths, rows=len(tokens_BL), longest=tokens_BL.shape[1])
    rows = [count for count, _ in cut]
    parts = zip(torch.split(tokens_BL, rows), torch.split(token_mask_BL, rows), cut, strict=True)
    return [(tokens[:, :length], mask[:, :length]) for tokens, mask, (_, length) in parts]


PromptShapes = tuple[tuple[int, int], tuple[int, int]]
"""(prompts, width) of the entities and of the relations"""


def prompt_shapes(config: ModelConfig, shapes: PromptShapes | None) -> dict[str, int]:
    """Return the arguments of `build_model` about prompts; without soft labels those heads are never trained, so any
    shape will do."""
    if not config.fusion:
        return {}
    (num_entities, entity_width), (num_relations, relation_width) = shapes or (((config.width,) * 2,) * 2)
    return {
        "entity_width": entity_width,
        "relation_width": relation_width,
        "num_entities": num_entities,
        "num_relations": num_relations,
    }


def build_model(
    config: ModelConfig,
    *,
    entity_width: int | None = None,
    relation_width: int | None = None,
    num_entities: int | None = None,
    num_relations: int | None = None,
) -> AlignmentModel:
    """Return the model with the weights that `config` names, in float32.

    Raises:
        WeightsError: a source is not there or does not fit.
        ConfigError: the parts do not fit each other.
    """
    return AlignmentModel(
        config,
        bert=build_bert(config.text),
        vision=build_vision(config.vision),
        entity_width=entity_width,
        relation_width=relation_width,
        num_entities=num_entities,
        num_relations=num_relations,
    )
