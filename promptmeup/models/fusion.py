"""The fusion half: the last layers of the BERT, by self-attention over [text tokens ; image tokens]."""

import torch
from torch import Tensor, nn

from promptmeup.models.text import run_layers


class FusionEncoder(nn.Module):
    """BERT layers over both modalities; image tokens enter through a linear map and a LayerNorm.

    The LayerNorm brings them to the scale that BERT's layers are used to (each ends in one). As in the
    paper's release, image tokens get no position or modality embedding: the vision encoder gave them
    positions already.
    """

    def __init__(self, layers: nn.ModuleList, *, vision_width: int, hidden: int) -> None:
        super().__init__()
        self.projection = nn.Linear(vision_width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.layers = layers

    def forward(
        self, text_BLH: Tensor, token_mask_BL: Tensor, image_tokens_BPH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the fused text states [B, L, H] and image states [B, P, H] (H: BERT's width).

        `image_tokens_BPH` are in the vision encoder's width; all of them are attended to.
        """
        image_BPH = self.norm(self.projection(image_tokens_BPH))
        states_BNH = torch.cat([text_BLH, image_BPH.to(text_BLH.dtype)], dim=1)
        mask_BN = torch.cat([token_mask_BL, token_mask_BL.new_ones(image_BPH.shape[:2])], dim=1)
        states_BNH = run_layers(self.layers, states_BNH, mask_BL=mask_BN)
        length = text_BLH.shape[1]
        return states_BNH[:, :length], states_BNH[:, length:]
