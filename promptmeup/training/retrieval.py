"""Image-text retrieval: does each photo find its captions, and each caption its photo?

The protocol is the field's (Karpathy & Fei-Fei 2015, as in CLIP): every photo of the split once, every
caption with the photo of its own record; image -> text counts a hit when ANY of the photo's captions is
among the first k.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)


def ranks_of_match(scores_QN: Tensor, *, is_match_QN: Tensor) -> Tensor:
    """Return, for each query, how many non-matches score at least as high as its best match: [Q] int64.

    Ties count against the model, and so do scores that are no number: constant embeddings, or NaN, would otherwise
    come out perfect.
    """
    best_Q1 = scores_QN.masked_fill(~is_match_QN, -torch.inf).amax(dim=1, keepdim=True)
    return (~(scores_QN < best_Q1) & ~is_match_QN).sum(dim=1)


def match_ranks(
    image_ND: Tensor, text_MD: Tensor, *, image_ids_N: Tensor, caption_ids_M: Tensor, chunk: int = 1024
) -> dict[str, Tensor]:
    """Return for each direction the ranks of the queries' matches, from 0 (see `ranks_of_match`).

    A caption belongs to the image whose id equals its own; queries without a match are left out.
    """
    found = {}
    directions = {
        "image_to_text": (image_ND, text_MD, image_ids_N, caption_ids_M),
        "text_to_image": (text_MD, image_ND, caption_ids_M, image_ids_N),
    }
    for name, (query_QD, target_ND, query_ids_Q, target_ids_N) in directions.items():
        ranks = []
        for begin in range(0, len(query_QD), chunk):
            rows = slice(begin, begin + chunk)
            is_match_QN = query_ids_Q[rows, None] == target_ids_N[None]
            has_match = is_match_QN.any(dim=1)
            scores_QN = query_QD[rows][has_match].float() @ target_ND.float().T
            ranks.append(ranks_of_match(scores_QN, is_match_QN=is_match_QN[has_match]))
        found[name] = torch.cat(ranks)
    return found


def recalls(ranks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return recall at 1, 5 and 10 in both directions and their mean, each in [0, 1], of `match_ranks`."""
    result: dict[str, float] = {}
    for name, rank_Q in ranks.items():
        for k in CUTOFFS:
            result[f"{name}_r{k}"] = (rank_Q < k).double().mean().item() if len(rank_Q) else 0.0
    result["mean_recall"] = sum(result.values()) / len(result)
    return result


def chance(num_images: int, num_captions: int, *, k: int = 10) -> dict[str, float]:
    """Return the expected recall at k of random scores, with the captions spread evenly over the images."""
    per_image = num_captions / max(1, num_images)
    missed = 1.0
    for place in range(min(k, num_captions)):
        missed *= max(0.0, 1 - per_image / (num_captions - place))
    return {"image_to_text": 1 - missed, "text_to_image": min(1.0, k / max(1, num_images))}
