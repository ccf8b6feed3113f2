"""Heads: from encoder states to unit vectors, matching logits and temperatures."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE_RANGE = (0.001, 0.5)
# A box of exactly one patch must count although its area carries float32 rounding.
_ONE_PATCH = 1 - 1e-4


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is blocked only where it pushes further out of the range.

    Plain clamp has no gradient beyond the limits, so a temperature that once steps over one would stay
    there for ever.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        # masks, not the parameter: ZeRO-3 frees the parameter's storage before the backward pass
        ctx.save_for_backward(value <= low, value >= high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        low, high = ctx.saved_tensors
        # descent moves against the gradient: a positive one lowers the value
        outwards = (low & (gradient > 0)) | (high & (gradient < 0))
        return gradient.masked_fill(outwards, 0), None, None


class Temperature(nn.Module):
    """A temperature of shape [1]: learnable, kept in TEMPERATURE_RANGE, or fixed.

    A fixed one is a buffer: no optimizer has it, and DeepSpeed leaves it in float32 where it casts parameters to bf16.
    """

    value: Tensor

    def __init__(self, initial: float, *, learnable: bool = True) -> None:
        super().__init__()
        value = torch.tensor([initial])
        if learnable:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return it as float32 of shape [1]."""
        low, high = TEMPERATURE_RANGE
        bounded: Tensor = _Bounded.apply(self.value.float(), low, high)
        return bounded


def unit(vectors: Tensor) -> Tensor:
    """Return the vectors at unit length along the last dimension, in float32."""
    return F.normalize(vectors.float(), dim=-1)


def classifier(width: int, num_classes: int) -> nn.Sequential:
    """Return the paper's head over a fused state: H -> 2H -> K with ReLU, logits without a temperature."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, num_classes))


class Heads(nn.Module):
    """Heads over the encoders; those of the fused states exist only in a fusion model.

    Args:
        vision_width, text_width: widths of the encoders.
        width: D of the image-text space.
        temperature: where all temperatures start.
        learn_temperature: they may leave it.
        fused: (entity bank's width, relation bank's width), with classifiers the banks' numbers of prompts; None
            for a dual encoder.
        classifiers: objects and relations are classified, instead of projected to where the prompts are.
    """

    def __init__(
        self,
        *,
        vision_width: int,
        text_width: int,
        width: int,
        temperature: float,
        learn_temperature: bool = True,
        fused: tuple[int, int] | None,
        classifiers: bool = False,
    ) -> None:
        super().__init__()
        self.image = nn.Linear(vision_width, width)
        self.text = nn.Linear(text_width, width)
        self.temperature = Temperature(temperature, learnable=learn_temperature)
        if fused is not None:
            head = classifier if classifiers else nn.Linear
            self.object, self.relation = (head(text_width, outputs) for outputs in fused)
            self.matching = nn.Linear(text_width, 2)
            if not classifiers:
                self.object_temperature = Temperature(temperature, learnable=learn_temperature)
                self.relation_temperature = Temperature(temperature, learnable=learn_temperature)


def box_coverage(boxes_BM4: Tensor, *, grid: int) -> Tensor:
    """Return the share of each patch's area that lies in each box, [B, M, grid * grid] float32.

    Boxes are x0, y0, x1, y1 in [0, 1] of the image, parts outside of it count nothing; patches are in
    rows from the top left. The sum over patches is the box's area in patches.
    """
    edges = torch.arange(grid + 1, device=boxes_BM4.device, dtype=torch.float32)
    x0, y0, x1, y1 = (boxes_BM4.float() * grid).unsqueeze(-1).unbind(dim=-2)  # each [B, M, 1], in patches
    across_BMW = (torch.minimum(x1, edges[1:]) - torch.maximum(x0, edges[:-1])).clamp(min=0)
    down_BMH = (torch.minimum(y1, edges[1:]) - torch.maximum(y0, edges[:-1])).clamp(min=0)
    return (down_BMH.unsqueeze(-1) * across_BMW.unsqueeze(-2)).flatten(-2)


def pool_boxes(
    patches_BPH: Tensor, boxes_BM4: Tensor, box_mask_BM: Tensor, *, grid: int
) -> tuple[Tensor, Tensor]:
    """Return the coverage-weighted mean of the patches in each box [B, M, H], and which boxes count [B, M].

    A box counts if its mask is true and it covers at least the area of one patch; the others are zeros.
    """
    boxes_BM4 = torch.where(box_mask_BM.unsqueeze(-1), boxes_BM4, 0)
    coverage_BMP = box_coverage(boxes_BM4, grid=grid)
    total_BM = coverage_BMP.sum(dim=-1)
    valid_BM = box_mask_BM & (total_BM >= _ONE_PATCH)
    weights_BMP = coverage_BMP / total_BM.clamp(min=_ONE_PATCH).unsqueeze(-1) * valid_BM.unsqueeze(-1)
    return weights_BMP.to(patches_BPH.dtype) @ patches_BPH, valid_BM
