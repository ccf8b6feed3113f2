"""The losses as the paper and its release have them, for one rank: what ours must equal where both mean the same.

Image-text: targets are the diagonal of the match labels, so a mismatched pair has an all-zero target, and the mean
divides by all rows. Object-entity and image-relation: cross-entropy of a classifier over prompts, local, no columns.
"""

import torch
from torch import Tensor


def image_text(x_BD: Tensor, y_BD: Tensor, *, matched_B: Tensor, temperature: Tensor) -> Tensor:
    logits_BB = x_BD @ y_BD.T / temperature
    target_BB = torch.diag(matched_B.to(logits_BB.dtype))
    forth = -(target_BB * logits_BB.log_softmax(1)).sum(1).mean()
    back = -(target_BB * logits_BB.T.log_softmax(1)).sum(1).mean()
    return (forth + back) / 2


def soft_label(logits_NK: Tensor, *, q_NK: Tensor) -> Tensor:
    return -(q_NK * logits_NK.log_softmax(1)).sum(1).mean()
