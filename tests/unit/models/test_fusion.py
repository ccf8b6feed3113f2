import torch
from torch import nn

from promptmeup.models.fusion import FusionEncoder
from promptmeup.models.text import build_bert
from tests.unit.models.support import tiny_text


def test_fusion_is_berts_layers_over_both_modalities() -> None:
    torch.manual_seed(0)
    bert = build_bert(tiny_text()).eval()
    fusion = FusionEncoder(nn.ModuleList(bert.encoder.layer[2:]), vision_width=48, hidden=64).eval()
    text_BLH, image_BPH = torch.randn(2, 5, 64), torch.randn(2, 4, 48)
    mask_BL = torch.tensor([[True] * 5, [True, True, True, False, False]])
    fused_BLH, fused_BPH = fusion(text_BLH, mask_BL, image_BPH)

    states = torch.cat([text_BLH, fusion.norm(fusion.projection(image_BPH))], dim=1)
    mask = torch.cat([mask_BL, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    additive = torch.zeros(2, 1, 1, 9).masked_fill(~mask[:, None, None], float("-inf"))
    for layer in bert.encoder.layer[2:]:
        states = layer(states, additive)
    torch.testing.assert_close(torch.cat([fused_BLH, fused_BPH], dim=1), states, atol=1e-6, rtol=0)
    assert (fused_BLH.shape, fused_BPH.shape) == ((2, 5, 64), (2, 4, 64))


def test_image_tokens_attend_to_text_and_back_but_not_to_padding() -> None:
    torch.manual_seed(0)
    bert = build_bert(tiny_text()).eval()
    fusion = FusionEncoder(nn.ModuleList(bert.encoder.layer[2:]), vision_width=64, hidden=64).eval()
    text_BLH = torch.randn(1, 4, 64, requires_grad=True)
    image_BPH = torch.randn(1, 3, 64, requires_grad=True)
    fused_BLH, fused_BPH = fusion(text_BLH, torch.tensor([[True, True, True, False]]), image_BPH)
    (to_text,) = torch.autograd.grad(fused_BPH.square().sum(), text_BLH, retain_graph=True)
    (to_image,) = torch.autograd.grad(fused_BLH[:, :3].square().sum(), image_BPH)
    assert (to_text[0, :3].norm(dim=-1) > 0).all()
    assert (to_text[0, 3] == 0).all()
    assert (to_image[0].norm(dim=-1) > 0).all()
