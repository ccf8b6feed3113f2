"""Image-text matching: does this caption belong to this image? Cross-entropy of two classes."""

import torch.nn.functional as F
from torch import Tensor

from promptmeup.losses.tiles import sum_dtype
from promptmeup.records import Term


def matching(logits_B2: Tensor, *, matched_B: Tensor) -> tuple[Term, Term]:
    """Return the cross-entropy (class 1 = the pair matches) and the accuracy, over all rows.

    Computed in float32, or in float64 where the logits are float64.
    """
    logits_B2 = logits_B2.to(sum_dtype(logits_B2.dtype))
    target_B = matched_B.long()
    count = logits_B2.new_full((), len(target_B))
    hits = (logits_B2.detach().argmax(1) == target_B).sum().to(logits_B2.dtype)
    return Term(F.cross_entropy(logits_B2, target_B, reduction="sum"), count), Term(hits, count)
