"""The pre-trained model as a transformers model, and what `AutoModel` has to know of all of ours."""

from typing import Any, Literal

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, PreTrainedConfig

from promptmeup.models.built_in_place import BuiltInPlace
from promptmeup.models.extraction import EXTRACTION_MODELS, EntityConfig, EntityModel
from promptmeup.models.saving import from_description


class AlignmentConfig(PreTrainedConfig):  # type: ignore[misc]
    """What an `AlignmentModel` is built from.

    Args:
        alignment: of `saving.describe`.
        eval_mode: how a photo becomes a square (data.transforms.ImageConfig), its size is in `alignment`.
        max_tokens: longest caption in training, special tokens included.
        source: where it comes from: data, metrics, versions; JSON values.
    """

    model_type = "promptmeup"

    def __init__(
        self,
        *,
        alignment: dict[str, Any] | None = None,
        eval_mode: Literal["center", "whole"] = "center",
        max_tokens: int = 40,
        source: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.alignment = alignment
        self.eval_mode = eval_mode
        self.max_tokens = max_tokens
        self.source = source or {}


class PretrainedAlignmentModel(BuiltInPlace):
    """An `AlignmentModel` under transformers' conventions."""

    config_class = AlignmentConfig
    base_model_prefix = "alignment"
    main_input_name = "input_ids"

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__(config)
        assert config.alignment is not None
        self.alignment = from_description(config.alignment)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return fields of records.Features for photos [B, C, S, S], captions [B, L] or both; see `AlignmentModel`.

        Args:
            boxes: [B, M, 4] x0, y0, x1, y1 in [0, 1] of the photo, with `box_mask` [B, M], bool.
        """
        mask = attention_mask.bool() if attention_mask is not None else None
        features: dict[str, Tensor] = self.alignment(pixel_values, input_ids, mask, boxes, box_mask)
        return features


def register() -> None:
    """Tell transformers' Auto classes of these models; called once they are imported (see `promptmeup`)."""
    ours: tuple[tuple[Any, Any], ...] = ((AlignmentConfig, PretrainedAlignmentModel), *EXTRACTION_MODELS)
    for config, model in ours:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    AutoModelForTokenClassification.register(EntityConfig, EntityModel, exist_ok=True)
