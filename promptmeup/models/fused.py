"""Text and photo to fused text states: what pre-training made, as fine-tuning uses it."""

from typing import Any

import torch
from torch import Tensor, nn

from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.fusion import FusionEncoder
from promptmeup.models.text import TextEncoder, bert_from_description
from promptmeup.models.vision import VisionConfig, VisionEncoder, vision_from_description


class FusedEncoder(nn.Module):
    """Text half, vision encoder and fusion half of an `AlignmentModel`, split at the same layer, without its heads.

    A row without a photo has one learnt image token, `no_image`, in the place of all of its photo's. Pictures of
    single objects add one token each, their vector. Without a vision encoder the layers are plain BERT.

    Args:
        bert: a BertModel without pooler; its layers [0, fusion_layer) read the text alone.
        vision: None for text only.
    """

    def __init__(self, bert: Any, *, fusion_layer: int, vision: VisionEncoder | None) -> None:
        super().__init__()
        self.bert_description: dict[str, Any] = bert.config.to_dict()
        self.fusion_layer = fusion_layer
        self.width: int = bert.config.hidden_size
        self.text = TextEncoder(bert, fusion_layer=fusion_layer)
        self.fusion = FusionEncoder(
            nn.ModuleList(bert.encoder.layer[fusion_layer:]),
            vision_width=vision.width if vision else None,
            hidden=self.width,
        )
        self.vision = vision
        if vision is not None:
            self.no_image = nn.Parameter(torch.zeros(vision.width))

    def forward(
        self,
        tokens_BL: Tensor,
        token_mask_BL: Tensor,
        images_BCSS: Tensor | None = None,
        image_mask_B: Tensor | None = None,
        crops_BMCSS: Tensor | None = None,
        crop_mask_BM: Tensor | None = None,
    ) -> Tensor:
        """Return the fused text states [B, L, H].

        Args:
            tokens_BL: int64, with `token_mask_BL`, bool, true on real tokens.
            images_BCSS: photos, normalised; anything in rows that have none. None: no row has one, or text only.
            image_mask_B: bool, true where the row has a photo; None: everywhere.
            crops_BMCSS: pictures of single objects, normalised, with `crop_mask_BM`, bool.
        """
        states_BLH: Tensor = self.text(tokens_BL, token_mask_BL)
        if self.vision is None:
            assert images_BCSS is None, "this model reads text only"
            return self.fusion.text_alone(states_BLH, token_mask_BL)
        rows = len(tokens_BL)
        if images_BCSS is None:
            image_BPH = self.no_image.expand(rows, 1, -1)
            fused_BLH: Tensor = self.fusion(states_BLH, token_mask_BL, image_BPH)[0]
            return fused_BLH
        if image_mask_B is None:
            image_mask_B = token_mask_BL.new_ones(rows)
        # rows without a photo are encoded and thrown away: every rank needs a gradient for every parameter
        pictures = images_BCSS
        if crops_BMCSS is not None:
            assert crop_mask_BM is not None
            pictures = torch.cat([images_BCSS, crops_BMCSS[crop_mask_BM]])
        vectors_NH, tokens_NPH = self.vision(pictures)
        image_BPH = torch.cat([vectors_NH[:rows, None], tokens_NPH[:rows]], dim=1)
        absent = self.no_image.to(image_BPH.dtype)
        image_BPH = image_BPH.where(image_mask_B[:, None, None], absent)
        mask_BP = image_mask_B[:, None].expand(image_BPH.shape[:2]).clone()
        mask_BP[:, 0] = True
        if crops_BMCSS is not None:
            assert crop_mask_BM is not None
            crops_BMH = vectors_NH.new_zeros(*crop_mask_BM.shape, vectors_NH.shape[1])
            crops_BMH = crops_BMH.masked_scatter(crop_mask_BM[..., None], vectors_NH[rows:])
            image_BPH = torch.cat([image_BPH, crops_BMH], dim=1)
            mask_BP = torch.cat([mask_BP, crop_mask_BM], dim=1)
        fused_BLH = self.fusion(states_BLH, token_mask_BL, image_BPH, mask_BP)[0]
        return fused_BLH  # noqa: RET504

    def resize_vocabulary(self, size: int) -> None:
        """Give the word embeddings `size` rows, new ones near the mean of the old: they have no meaning yet.

        A size that is smaller than what is there changes nothing.
        """
        words = self.text.embeddings.word_embeddings
        added = size - words.num_embeddings
        if added <= 0:
            return
        larger = nn.Embedding(size, words.embedding_dim, padding_idx=words.padding_idx)
        with torch.no_grad():
            larger.weight[:-added] = words.weight
            larger.weight[-added:] = words.weight.mean(dim=0) + 0.02 * torch.randn(added, words.embedding_dim)
        self.text.embeddings.word_embeddings = larger
        self.bert_description["vocab_size"] = size


def fused_encoder(model: AlignmentModel, *, text_only: bool = False) -> FusedEncoder:
    """Return the encoder with the weights of a pre-trained model that has a fusion half."""
    assert model.fusion is not None
    encoder = FusedEncoder(
        bert_from_description(model.bert_description),
        fusion_layer=model.config.text.fusion_layer,
        vision=None if text_only else model.vision,
    )
    encoder.text.load_state_dict(model.text.state_dict())
    kept = {
        name: value
        for name, value in model.fusion.state_dict().items()
        if not text_only or name.startswith("layers.")
    }
    encoder.fusion.load_state_dict(kept)
    return encoder


def describe_encoder(encoder: FusedEncoder, *, vision: VisionConfig | None) -> dict[str, Any]:
    """Return JSON values from which `encoder_from_description` builds it again, weights apart."""
    return {
        "bert": encoder.bert_description,
        "fusion_layer": encoder.fusion_layer,
        "vision_config": vision.model_dump(mode="json") if vision and encoder.vision else None,
        "vision": encoder.vision.description if encoder.vision else None,
    }


def encoder_from_description(description: dict[str, Any]) -> FusedEncoder:
    """Return the encoder with random weights."""
    vision = None
    if description["vision"] is not None:
        config = VisionConfig.model_validate(description["vision_config"])
        vision = vision_from_description(config, description["vision"])
    return FusedEncoder(
        bert_from_description(description["bert"]), fusion_layer=description["fusion_layer"], vision=vision
    )
