"""Loading the weights of vision encoders, every tensor checked: timm, transformers' ViT, a packaged CNN."""

import difflib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, ViTModel

from promptmeup.errors import ConfigError, WeightsError
from promptmeup.models.weights import quiet_transformers, some

KEY = "model.vision.weights"
LITE0 = "tf_efficientnet_lite0"


def create_timm(architecture: str, image_size: int, *, num_classes: int = 0) -> Any:
    import timm  # a second, which models with transformers' ViT are spared

    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"model.vision.architecture: timm has no '{architecture}'; close: {', '.join(close) or 'none'}"
        )
    fixed_size = timm.get_pretrained_cfg(architecture, allow_unregistered=True).fixed_input_size
    sizes = {"img_size": image_size} if fixed_size else {}
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **sizes)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.vision: timm cannot build {architecture} at {image_size} px: {error}"
        ) from error


def load_vit(folder: Path) -> Any:
    try:
        with quiet_transformers():
            model_type = AutoConfig.from_pretrained(folder).model_type
            if model_type != "vit":
                raise WeightsError(
                    f"{KEY}: {folder} holds a '{model_type}' model; kind: transformers takes type 'vit', "
                    "other encoders come through kind: timm"
                )
            backbone, report = ViTModel.from_pretrained(
                folder, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{KEY}: cannot read a ViT from {folder}: {error}") from error
    if report["missing_keys"]:
        raise WeightsError(f"{KEY}: {folder} lacks {some(sorted(report['missing_keys']))}")
    return backbone


def load_timm(backbone: Any, path: Path) -> None:
    """Load a timm checkpoint whole, apart from its classifier; position embeddings are resized."""
    import timm

    files = [path] if path.is_file() else [path / "model.safetensors", path / "pytorch_model.bin"]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise WeightsError(f"{KEY}: {path} holds neither model.safetensors nor pytorch_model.bin")
    try:
        state = timm.models.load_state_dict(str(file), weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"{KEY}: cannot read {file}: {error}") from error
    # timm keeps each family's conversions (resized position embeddings among them) beside its model
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    state = convert(state, backbone) if convert else state
    classifiers = backbone.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in names}
    own = backbone.state_dict()
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    wrong += sorted(set(state) - set(own))
    if wrong:
        raise WeightsError(
            f"{KEY}: {file} does not fit {backbone.pretrained_cfg['architecture']}: missing, unknown or of "
            f"another shape: {some(wrong)}; set model.vision.architecture to the checkpoint's own"
        )
    backbone.load_state_dict(state, strict=False)


def load_efficientnet_lite0(checkpoint: Path) -> Any:
    """Return timm's tf_efficientnet_lite0, ImageNet classifier included, with the packaged weights.

    The checkpoint's names are another implementation's, but its tensors come in timm's order: they are
    matched by position, and every shape must agree.

    Raises:
        WeightsError: another number of tensors, or another shape somewhere.
    """
    backbone = create_timm(LITE0, 224, num_classes=1000)
    own = backbone.state_dict()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    wrong = [
        f"{theirs} {tuple(state[theirs].shape)} for {ours} {tuple(own[ours].shape)}"
        for theirs, ours in zip(state, own, strict=False)
        if state[theirs].shape != own[ours].shape
    ]
    if len(state) != len(own) or wrong:
        raise WeightsError(
            f"{KEY}: {checkpoint} is not the known EfficientNet-Lite0: {len(state)} tensors instead of "
            f"{len(own)}, {len(wrong)} of another shape{': ' + some(wrong, limit=2) if wrong else ''}; "
            "install the version of the package that requirements.lock names"
        )
    backbone.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return backbone
