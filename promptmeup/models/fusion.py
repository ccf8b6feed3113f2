"""The fusion half: the last layers of the BERT, by self-attention over [text tokens ; image tokens]."""

import torch
from torch import Tensor, nn

from promptmeup.models.text import run_layers


class FusionEncoder(nn.Module):
    """BERT layers over both modalities; image tokens enter through a linear map and a LayerNorm.

    The LayerNorm brings them to the scale that BERT's layers are used to (each ends in one). As in the
    paper's release, image tokens get no position or modality embedding: the vision encoder gave them
    positions already. With `vision_width` None there is no way in for images, and the layers are plain BERT.
    """

    def __init__(self, layers: nn.ModuleList, *, vision_width: int | None, hidden: int) -> None:
        super().__init__()
        if vision_width is not None:
            self.projection = nn.Linear(vision_width, hidden)
            self.norm = nn.LayerNorm(hidden)
        self.layers = layers

    def forward(
        self,
        text_BLH: Tensor,
        token_mask_BL: Tensor,
        image_tokens_BPH: Tensor,
        image_mask_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the fused text states [B, L, H] and image states [B, P, H] (H: BERT's width).

        `image_tokens_BPH` are in the vision encoder's width; those whose mask is false (None: none of them) are not
        attended to.
        """
        image_BPH = self.norm(self.projection(image_tokens_BPH))
        if image_mask_BP is None:
            image_mask_BP = token_mask_BL.new_ones(image_BPH.shape[:2])
        states_BNH = torch.cat([text_BLH, image_BPH.to(text_BLH.dtype)], dim=1)
        mask_BN = torch.cat([token_mask_BL, image_mask_BP], dim=1)
        states_BNH = run_layers(self.layers, states_BNH, mask_BL=mask_BN)
        length = text_BLH.shape[1]
        return states_BNH[:, :length], states_BNH[:, length:]

    def text_alone(self, text_BLH: Tensor, token_mask_BL: Tensor) -> Tensor:
        """Return the text states [B, L, H] of the layers over the text, without any image token."""
        return run_layers(self.layers, text_BLH, mask_BL=token_mask_BL)
