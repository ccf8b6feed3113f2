"""The fused encoder: what pre-training computes, photos that are absent, pictures of objects."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.fused import (
    FusedEncoder,
    describe_encoder,
    encoder_from_description,
    fused_encoder,
)
from promptmeup.models.text import build_bert
from tests.support.tiny_alignment import TINY

B, L = 3, 8


@pytest.fixture
def student() -> AlignmentModel:
    torch.manual_seed(0)
    return build_model(TINY, entity_width=16, relation_width=16).eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask_BL = torch.ones(B, L, dtype=torch.bool)
    mask_BL[1, 5:] = False
    return {
        "tokens_BL": torch.randint(1000, 2000, (B, L)),
        "token_mask_BL": mask_BL,
        "images_BCSS": torch.randn(B, 3, 32, 32),
    }


def pretrained_states(
    model: AlignmentModel, tokens_BL: Tensor, token_mask_BL: Tensor, images_BCSS: Tensor
) -> Tensor:
    """The fused states as pre-training makes them: the text half on the text alone, then all tokens together."""
    states_BLH = model.text(tokens_BL, token_mask_BL)
    vector_BH, tokens_BPH = model.vision(images_BCSS)
    assert model.fusion is not None
    return model.fusion(states_BLH, token_mask_BL, torch.cat([vector_BH[:, None], tokens_BPH], dim=1))[0]


@torch.no_grad()
def test_fine_tuning_runs_the_stack_that_pre_training_ran(
    student: AlignmentModel, inputs: dict[str, Tensor]
) -> None:
    """The release sends text through all layers, and then both through the same layers again."""
    encoder = fused_encoder(student).eval()
    assert len(encoder.text.layers) == 1
    assert len(encoder.fusion.layers) == 2
    assert torch.equal(encoder(**inputs), pretrained_states(student, **inputs))


@torch.no_grad()
def test_rows_without_a_photo_do_not_see_what_is_in_its_place(
    student: AlignmentModel, inputs: dict[str, Tensor]
) -> None:
    encoder = fused_encoder(student).eval()
    torch.nn.init.normal_(encoder.no_image)
    there_B = torch.tensor([True, False, True])
    states_BLH = encoder(**inputs, image_mask_B=there_B)
    other = inputs | {"images_BCSS": inputs["images_BCSS"].clone()}
    other["images_BCSS"][1] = 7.0
    assert torch.equal(encoder(**other, image_mask_B=there_B), states_BLH)
    whole_BLH = encoder(**inputs)
    torch.testing.assert_close(states_BLH[there_B], whole_BLH[there_B])
    assert (states_BLH[1] - whole_BLH[1]).abs().max() > 1e-3
    # the same state whether others of the batch have photos or none has
    alone = {name: value for name, value in inputs.items() if name != "images_BCSS"}
    torch.testing.assert_close(encoder(**alone)[1, :5], states_BLH[1, :5], atol=1e-6, rtol=1e-5)


def test_no_photo_is_learnt(student: AlignmentModel, inputs: dict[str, Tensor]) -> None:
    encoder = fused_encoder(student)
    there_B = torch.tensor([True, False, True])
    encoder(**inputs, image_mask_B=there_B)[1].pow(2).sum().backward()
    assert encoder.no_image.grad is not None
    assert encoder.no_image.grad.abs().max() > 0
    unused = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not unused, "several ranks wait for a gradient of every parameter"


@torch.no_grad()
def test_pictures_of_objects_are_seen_by_their_row_alone(
    student: AlignmentModel, inputs: dict[str, Tensor]
) -> None:
    encoder = fused_encoder(student).eval()
    torch.manual_seed(2)
    crops = torch.randn(B, 2, 3, 32, 32)
    mask_BM = torch.tensor([[True, True], [False, False], [True, False]])
    states_BLH = encoder(**inputs, crops_BMCSS=crops, crop_mask_BM=mask_BM)
    plain_BLH = encoder(**inputs)
    real = inputs["token_mask_BL"]
    torch.testing.assert_close(states_BLH[1][real[1]], plain_BLH[1][real[1]], atol=1e-6, rtol=1e-5)
    assert (states_BLH[0] - plain_BLH[0]).abs().max() > 1e-3
    # their order does not matter, and what lies in masked places neither
    swapped = encoder(**inputs, crops_BMCSS=crops.flip(1), crop_mask_BM=mask_BM.flip(1))
    torch.testing.assert_close(swapped[real], states_BLH[real], atol=1e-6, rtol=1e-5)
    changed = crops.clone()
    changed[1] = 9.0
    changed[2, 1] = 9.0
    assert torch.equal(encoder(**inputs, crops_BMCSS=changed, crop_mask_BM=mask_BM), states_BLH)


@torch.no_grad()
def test_text_alone_is_plain_bert(inputs: dict[str, Tensor]) -> None:
    bert: Any = build_bert(TINY.text).eval()
    encoder = FusedEncoder(bert, fusion_layer=2, vision=None).eval()
    assert isinstance(bert, BertModel)
    expected = bert(input_ids=inputs["tokens_BL"], attention_mask=inputs["token_mask_BL"].long())
    states_BLH = encoder(inputs["tokens_BL"], inputs["token_mask_BL"])
    real = inputs["token_mask_BL"]
    torch.testing.assert_close(states_BLH[real], expected.last_hidden_state[real], atol=1e-5, rtol=1e-5)
    assert not [name for name in encoder.state_dict() if "projection" in name or "no_image" in name]


@torch.no_grad()
@pytest.mark.parametrize("text_only", [False, True])
def test_described_and_built_again(
    student: AlignmentModel, inputs: dict[str, Tensor], text_only: bool
) -> None:
    encoder = fused_encoder(student, text_only=text_only).eval()
    vision = None if text_only else TINY.vision
    again = encoder_from_description(describe_encoder(encoder, vision=vision)).eval()
    again.load_state_dict(encoder.state_dict())
    given = {k: v for k, v in inputs.items() if not text_only or k != "images_BCSS"}
    assert torch.equal(again(**given), encoder(**given))


@torch.no_grad()
def test_more_words_change_nothing_for_the_old(student: AlignmentModel, inputs: dict[str, Tensor]) -> None:
    encoder = fused_encoder(student).eval()
    before = encoder(**inputs)
    size = encoder.text.embeddings.word_embeddings.num_embeddings
    encoder.resize_vocabulary(size - 5)
    assert encoder.text.embeddings.word_embeddings.num_embeddings == size
    encoder.resize_vocabulary(size + 4)
    assert encoder.bert_description["vocab_size"] == size + 4
    assert torch.equal(encoder(**inputs), before)
    new_4H = encoder.text.embeddings.word_embeddings.weight[-4:]
    assert len({tuple(row.tolist()) for row in new_4H}) == 4, "the markers must differ"


def test_a_dual_encoder_has_nothing_to_fine_tune() -> None:
    config = ModelConfig.model_validate(TINY.model_dump(mode="json") | {"fusion": False})
    with pytest.raises(AssertionError):
        fused_encoder(build_model(config))
