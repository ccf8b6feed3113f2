"""What is done to each transformer layer of a model alike: compiled, or computed again instead of kept."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import ViTModel

from promptmeup.errors import ConfigError
from promptmeup.models.alignment import AlignmentModel

Checkpointing = Literal["none", "selective", "full"]
"""what a layer keeps for the backward pass: all that it needs; what products of matrices and attention gave, so that
norms, GELU and dropout are computed again; its input alone, for one more forward pass of the layers"""

EXPENSIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def transformer_layers(model: AlignmentModel) -> list[nn.Module]:
    """Return the layers of text, fusion and vision; a CNN has none."""
    backbone: Any = model.vision.backbone
    vision: Any = []
    if isinstance(backbone, ViTModel):
        vision = backbone.layers
    elif hasattr(backbone, "num_prefix_tokens"):  # timm's ViTs
        vision = backbone.blocks
    fusion: Any = model.fusion.layers if model.fusion is not None else []
    return [*model.text.layers, *fusion, *vision]


def compile_layers(model: AlignmentModel, *, backend: str = "inductor") -> None:
    """Compile each layer in place (torch.compile); layers of one kind share their code, and names stay.

    Raises:
        ConfigError: the default backend has no compiler on this machine.
    """
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            f"engine.compile needs a compiler on this machine, and neither {' nor '.join(compilers)} is there: "
            "install one, or set engine.compile=false"
        )
    for layer in transformer_layers(model):
        layer.compile(backend=backend)


def checkpoint_layers(model: AlignmentModel, kind: Checkpointing) -> None:
    """Have each layer keep less for the backward pass, in place."""
    if kind == "none":
        return
    contexts: dict[str, Any] = {}
    if kind == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in transformer_layers(model):
        forward: Callable[..., Any] = layer.forward
        layer.forward = partial(checkpoint, forward, use_reentrant=False, **contexts)


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
