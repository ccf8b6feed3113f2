"""How image and caption vectors lie on the unit sphere: what a collapse shows first.

    alignment   mean of |v - t|² over true pairs                            0 (equal) to 4
    uniformity  log of the mean of exp(-2 |v - w|²) over all pairs of rows   0 (all equal) to about -4 (spread evenly)

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere" (alpha = t = 2).
"""

import math

import torch
from torch import Tensor


def uniformity(rows_ND: Tensor, *, chunk: int = 1024) -> float:
    """Return the uniformity of unit rows over all pairs of different ones; 0 for fewer than two."""
    num_rows = len(rows_ND)
    if num_rows < 2:
        return 0.0
    total = 0.0
    for begin in range(0, num_rows, chunk):
        # |v - w|² = 2 - 2 v·w
        cosines_CN = rows_ND[begin : begin + chunk].float() @ rows_ND.float().T
        total += (4 * cosines_CN - 4).exp().double().sum().item()
    # the rows with themselves are exp(0) each, up to rounding
    mean = max(total - num_rows, 0.0) / (num_rows * (num_rows - 1))
    return math.log(mean) if mean > 0 else -math.inf


def alignment(image_ND: Tensor, text_MD: Tensor, *, image_ids_N: Tensor, caption_ids_M: Tensor) -> float:
    """Return the mean squared distance of each caption to the photo of its own record; 0 without any.

    Args:
        image_ND: unit rows, every photo once; `image_ids_N` is theirs.
        text_MD: unit rows; `caption_ids_M` is the photo of each caption's own record.
    """
    order_N = image_ids_N.argsort()
    places_M = torch.searchsorted(image_ids_N[order_N], caption_ids_M).clamp(max=len(image_ids_N) - 1)
    own_M = order_N[places_M]
    found_M = image_ids_N[own_M] == caption_ids_M
    cosines = (image_ND[own_M].float() * text_MD.float()).sum(1)[found_M]
    return (2 - 2 * cosines).double().mean().item() if len(cosines) else 0.0
