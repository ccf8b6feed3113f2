"""Image-text contrast: symmetric InfoNCE over the rows of all ranks, with the true matches found by id.

    s_ij = x_i·y_j / τ                            i: rows of this rank, j: rows of all ranks
    P_ij = [image of i = image of j's own record]         n_i = Σ_j P_ij
    L_i  = logsumexp_j s_ij - Σ_j P_ij s_ij / n_i         where n_i > 0, else the row does not count

Rows without a true match (falsified pairs) have no loss of their own and stay negatives of the others.
Van den Oord et al. 2018 (InfoNCE), Radford et al. 2021 (both directions), Khosla et al. 2020 (several
positives, L_out).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from promptmeup.losses.similarity import similarities
from promptmeup.records import Gathered, Term

SameImage = Literal["positive", "mask"]
"""Another row's true match is a further positive of the row, or is left out of its denominator."""


class ImageText(NamedTuple):
    """The loss is the mean of the two directions' world means; their numbers of valid rows may differ."""

    image_to_text: Term
    text_to_image: Term
    accuracy: Term
    """of image to text: rows whose most similar caption is a true match; no gradient"""


def contrast(
    x_BD: Tensor,
    *,
    y_GD: Tensor,
    x_ids_B: Tensor,
    y_ids_G: Tensor,
    offset: int,
    temperature: Tensor,
    same_image: SameImage,
) -> tuple[Term, Term]:
    """Return one direction of the contrast and its accuracy.

    Args:
        x_BD: unit rows of this rank.
        y_GD: unit rows of all ranks, the other modality.
        x_ids_B: int64, the image of each row of `x_BD`.
        y_ids_G: int64, the image of each row of `y_GD`; a true match has the same one.
        offset: row of `y_GD` that is the partner of `x_BD`'s first row.
        temperature: shape [1].
        same_image: what to do with true matches besides the row's own partner. With "mask" the own
            partner is the only positive, so a row whose own partner is false does not count.
    """
    logits_BG = similarities(x_BD, y_KD=y_GD, temperature=temperature)
    positive_BG = x_ids_B[:, None] == y_ids_G[None, :]
    if same_image == "mask":
        partner_B = offset + torch.arange(len(x_BD), device=x_BD.device)
        partner_BG = torch.arange(len(y_GD), device=x_BD.device)[None, :] == partner_B[:, None]
        # the partner's column stays, so no row is empty
        logits_BG = logits_BG.masked_fill(positive_BG & ~partner_BG, -torch.inf)
        positive_BG = positive_BG & partner_BG
    num_positive_B = positive_BG.sum(1).to(logits_BG.dtype)
    valid_B = num_positive_B > 0
    attraction_B = logits_BG.where(positive_BG, 0).sum(1) / num_positive_B.clamp(min=1)
    loss_B = logits_BG.logsumexp(1) - attraction_B
    count = valid_B.sum().to(logits_BG.dtype)
    hit_B = positive_BG.gather(1, logits_BG.detach().argmax(1, keepdim=True)).squeeze(1)
    return Term(loss_B.where(valid_B, 0).sum(), count), Term(hit_B.sum().to(logits_BG.dtype), count)


def image_text(
    image_BD: Tensor, *, text_BD: Tensor, gathered: Gathered, temperature: Tensor, same_image: SameImage
) -> ImageText:
    """Return both directions of the image-text contrast of this rank's rows against all ranks' rows.

    Args:
        image_BD: unit rows of this rank's images.
        text_BD: unit rows of this rank's captions, pair by pair.
        gathered: all ranks' rows, of which this rank's begin at `gathered.offset`.
        temperature: shape [1].
        same_image: see `contrast`.
    """
    own = slice(gathered.offset, gathered.offset + len(image_BD))
    image_to_text, accuracy = contrast(
        image_BD,
        y_GD=gathered.text_GD,
        x_ids_B=gathered.image_ids_G[own],
        y_ids_G=gathered.caption_ids_G,
        offset=gathered.offset,
        temperature=temperature,
        same_image=same_image,
    )
    text_to_image, _ = contrast(
        text_BD,
        y_GD=gathered.image_GD,
        x_ids_B=gathered.caption_ids_G[own],
        y_ids_G=gathered.image_ids_G,
        offset=gathered.offset,
        temperature=temperature,
        same_image=same_image,
    )
    return ImageText(image_to_text, text_to_image, accuracy)
