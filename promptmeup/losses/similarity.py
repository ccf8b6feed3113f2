"""Scaled dot products, in the precision that a log-sum-exp needs."""

import torch
from torch import Tensor


def similarities(x_ND: Tensor, *, y_KD: Tensor, temperature: Tensor) -> Tensor:
    """Return ``x yᵀ / temperature`` [N, K] in float32, or in float64 where `x_ND` is float64.

    Never in half precision, not even under autocast: with soft targets the gradient is a difference of
    two near-equal softmaxes, and bf16 logits spoil 3 to 14 % of it (float32 ones on bf16 features: 3e-6).

    Args:
        x_ND: unit rows, any floating dtype.
        y_KD: unit rows, any floating dtype.
        temperature: shape [1], positive.
    """
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    with torch.autocast(x_ND.device.type, enabled=False):
        return x_ND.to(dtype) @ y_KD.to(dtype).T / temperature.to(dtype)
