"""AdamW for fine-tuning: a learning rate for each part, and smaller ones for lower layers."""

import torch
from pydantic import Field
from torch import nn

from promptmeup.models.fused import FusedEncoder
from promptmeup.training.optim import Schedule, grouped


class FinetuneOptimConfig(Schedule):
    """Peak learning rates by part."""

    lr: float = Field(default=3e-5, gt=0)
    """of the text and fusion layers"""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """each layer's rate is this times that of the layer above it; the embeddings are a layer below the first"""
    vision_lr: float = Field(default=1e-5, ge=0)
    """of the vision encoder; 0 freezes it"""
    head_lr: float = Field(default=1e-3, gt=0)
    """of the classifier, and of the state that stands for no photo"""
    crf_lr: float = Field(default=1e-2, gt=0)
    """of the CRF's transitions, which no pre-training has made"""
    weight_decay: float = Field(default=0.01, ge=0)
    """on matrices; never on biases, norms and other vectors, nor on the CRF"""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """largest norm of the gradient; 0 switches clipping off"""


def build_optimizer(model: nn.Module, *, config: FinetuneOptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; a vision encoder whose rate is 0 is frozen first."""
    rates = parameter_rates(model, config)
    for parameter in model.parameters():
        parameter.requires_grad_(rates[id(parameter)] > 0)
    undecayed = {id(p) for name, p in model.named_parameters() if name.startswith("crf.")}
    groups = grouped(model, rates=rates, weight_decay=config.weight_decay, undecayed=undecayed)
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


def parameter_rates(model: nn.Module, config: FinetuneOptimConfig) -> dict[int, float]:
    """Return the peak learning rate of every parameter, by its id."""
    encoder = model.encoder
    assert isinstance(encoder, FusedEncoder)
    layers = [*encoder.text.layers, *encoder.fusion.layers]
    depths: list[tuple[nn.Module, int]] = [(layer, len(layers) - 1 - i) for i, layer in enumerate(layers)]
    depths.append((encoder.text.embeddings, len(layers)))
    rates = {id(p): config.head_lr for p in model.parameters()}
    rates |= {id(p): config.lr for p in encoder.fusion.parameters()}
    rates |= {
        id(p): config.lr * config.layer_decay**depth for part, depth in depths for p in part.parameters()
    }
    if encoder.vision is not None:
        rates |= {id(p): config.vision_lr for p in encoder.vision.parameters()}
    rates |= {id(p): config.crf_lr for name, p in model.named_parameters() if name.startswith("crf.")}
    return rates
