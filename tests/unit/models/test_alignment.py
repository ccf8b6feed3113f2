import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from promptmeup.errors import ConfigError
from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.text import TextConfig
from promptmeup.models.vision import VisionConfig
from promptmeup.records import Features
from tests.unit.models.support import (
    ENTITY_WIDTH,
    LITE0,
    MINILM,
    NUM_ENTITIES,
    NUM_RELATIONS,
    RELATION_WIDTH,
    batch,
    tiny_config,
    tiny_model,
    tiny_text,
    tiny_vision,
)

LOGITS = {"object_logits_BMK", "relation_logits_BK"}


def _small(**changes: object) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(weights=MINILM, fusion_layer=3, dropout=0.0),
        vision=VisionConfig(kind="timm", weights=LITE0, image_size=128),
        **changes,
    )


def _base(folder: Path) -> ModelConfig:
    """bert-base-uncased and ViT-B/16 in small, as directories that transformers saved."""
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=30522, hidden_size=48, num_hidden_layers=12, num_attention_heads=12, intermediate_size=64
    )
    BertModel(bert).save_pretrained(folder / "bert")
    vit = ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48)
    ViTModel(vit).save_pretrained(folder / "vit")
    return ModelConfig(
        text=TextConfig(weights=str(folder / "bert"), tokenizer=MINILM, fusion_layer=6, dropout=0.0),
        vision=VisionConfig(kind="transformers", weights=str(folder / "vit"), image_size=224),
    )


def _check_features(model: AlignmentModel, data: dict[str, Tensor], *, width: int) -> None:
    with torch.no_grad():
        result = model(**data)
    features = Features(**result)
    assert set(result) == {field.name for field in fields(Features)} - LOGITS
    rows, objects = data["box_mask_BM"].shape
    assert features.image_BD.shape == features.text_BD.shape == (rows, width)
    assert features.object_BMD is not None
    assert features.object_BMD.shape == (rows, objects, ENTITY_WIDTH)
    assert features.relation_BD is not None
    assert features.relation_BD.shape == (rows, RELATION_WIDTH)
    assert result["matching_logits_B2"].shape == (rows, 2)
    assert torch.equal(result["object_mask_BM"], data["box_mask_BM"])
    for vectors in (features.image_BD, features.text_BD, features.relation_BD):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(rows))
    torch.testing.assert_close(features.object_BMD.norm(dim=-1), data["box_mask_BM"].float())
    for name in ("temperature", "object_temperature", "relation_temperature"):
        torch.testing.assert_close(result[name], torch.tensor([0.07]))


def test_tiny() -> None:
    _check_features(tiny_model(), batch(), width=32)


def test_small() -> None:
    model = build_model(_small(), entity_width=ENTITY_WIDTH, relation_width=RELATION_WIDTH).eval()
    assert (len(model.text.layers), len(model.fusion.layers)) == (3, 3)
    _check_features(model, batch(size=128), width=256)


def test_base(tmp_path: Path) -> None:
    model = build_model(_base(tmp_path), entity_width=ENTITY_WIDTH, relation_width=RELATION_WIDTH).eval()
    assert (len(model.text.layers), len(model.fusion.layers)) == (6, 6)
    assert model.vision.grid == 14
    _check_features(model, batch(size=224), width=256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_classifiers_give_logits_in_place_of_vectors(dtype: torch.dtype) -> None:
    model = tiny_model(prompt_head="classifier").to(dtype)
    data = batch()
    with torch.no_grad():
        features = Features(**model(**data))
    assert features.object_logits_BMK is not None and features.relation_logits_BK is not None
    assert features.object_logits_BMK.shape == (3, 2, NUM_ENTITIES)
    assert features.relation_logits_BK.shape == (3, NUM_RELATIONS)
    assert features.object_logits_BMK.dtype == features.relation_logits_BK.dtype == torch.float32
    assert features.object_mask_BM is not None
    assert torch.equal(features.object_mask_BM, data["box_mask_BM"])
    # no object, no logits; and no unit vectors: a classifier's logits are as long as they like
    assert torch.equal(features.object_logits_BMK.abs().sum(-1) > 0, data["box_mask_BM"])
    assert (features.object_BMD, features.object_temperature) == (None, None)
    assert (features.relation_BD, features.relation_temperature) == (None, None)


def _every_loss(features: dict[str, Tensor]) -> Tensor:
    """A stand-in for all losses together: every feature counts, similarities over their temperature."""
    torch.manual_seed(3)
    contrast = (features["image_BD"] @ features["text_BD"].T / features["temperature"]).square().sum()
    contrast = contrast + features["matching_logits_B2"].square().sum()
    if "object_logits_BMK" in features:
        return contrast + sum(features[name].square().sum() for name in sorted(LOGITS))
    entities = torch.randn(ENTITY_WIDTH, 7)
    relations = torch.randn(RELATION_WIDTH, 7)
    objects = (features["object_BMD"] @ entities / features["object_temperature"]).square().sum()
    relation = (features["relation_BD"] @ relations / features["relation_temperature"]).square().sum()
    return contrast + objects + relation


@pytest.mark.parametrize("kind", ["tiny", "patches", "classifier", "small", "base"])
def test_every_parameter_receives_a_gradient(kind: str, tmp_path: Path) -> None:
    if kind in ("tiny", "patches"):
        model = tiny_model(image_pooling="cls" if kind == "tiny" else "patches")
    elif kind == "classifier":
        model = tiny_model(prompt_head="classifier")
    else:
        config = _small(text_pooling="mean") if kind == "small" else _base(tmp_path)
        model = build_model(config, entity_width=ENTITY_WIDTH, relation_width=RELATION_WIDTH)
    model.train()
    _every_loss(model(**batch(size=model.config.vision.image_size))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # softmax does not see a constant added to all keys, so their bias has a gradient of about 0
        if not name.endswith(("key.bias", "k_proj.bias")):
            assert parameter.grad.abs().sum() > 0, name


def test_every_parameter_of_a_dual_encoder_receives_a_gradient() -> None:
    model = tiny_model(fusion=False).train()
    data = batch()
    features = model(data["images_BCSS"], data["tokens_BL"], data["token_mask_BL"])
    assert set(features) == {"image_BD", "text_BD", "temperature"}
    (features["image_BD"] @ features["text_BD"].T / features["temperature"]).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert len(model.text.layers) == 2


def test_names_of_parameters_start_with_their_part() -> None:
    model = tiny_model()
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {
        "text", "vision", "fusion", "heads"
    }  # fmt: skip
    assert all(parameter.ndim > 0 for parameter in model.parameters())  # 0-dim ones crash DeepSpeed


def test_padding_changes_nothing() -> None:
    model = tiny_model(text_pooling="mean")
    data = batch()
    padded = dict(data)
    padded["tokens_BL"] = torch.nn.functional.pad(data["tokens_BL"], (0, 5))
    padded["token_mask_BL"] = torch.nn.functional.pad(data["token_mask_BL"], (0, 5))
    padded["boxes_BM4"] = torch.nn.functional.pad(data["boxes_BM4"], (0, 0, 0, 2))
    padded["box_mask_BM"] = torch.nn.functional.pad(data["box_mask_BM"], (0, 2))
    with torch.no_grad():
        expected, result = model(**data), model(**padded)
    result["object_BMD"], result["object_mask_BM"] = (
        result["object_BMD"][:, :2],
        result["object_mask_BM"][:, :2],
    )
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=0, msg=name)


def test_contrast_features_do_not_depend_on_the_partner_but_fused_ones_do() -> None:
    model = tiny_model()
    data = batch()
    other = data | {"images_BCSS": data["images_BCSS"].flip(0)}
    with torch.no_grad():
        first, second = model(**data), model(**other)
    assert torch.equal(first["text_BD"], second["text_BD"])
    torch.testing.assert_close(first["image_BD"], second["image_BD"].flip(0))
    # row 1 keeps its photo when three rows are turned round; row 0 does not
    assert not torch.allclose(first["matching_logits_B2"][0], second["matching_logits_B2"][0], atol=1e-6)
    torch.testing.assert_close(first["matching_logits_B2"][1], second["matching_logits_B2"][1])


def test_one_side_alone() -> None:
    model = tiny_model()
    data = batch()
    with torch.no_grad():
        both = model(**data)
        images = model(data["images_BCSS"])
        texts = model(None, data["tokens_BL"], data["token_mask_BL"])
        assert torch.equal(model.encode_images(data["images_BCSS"]), both["image_BD"])
        assert torch.equal(model.encode_texts(data["tokens_BL"], data["token_mask_BL"]), both["text_BD"])
    assert set(images) == {"image_BD"}
    assert set(texts) == {"text_BD"}
    assert torch.equal(images["image_BD"], both["image_BD"])
    assert torch.equal(texts["text_BD"], both["text_BD"])


def test_without_boxes_there_are_no_object_features() -> None:
    data = batch()
    features = tiny_model()(data["images_BCSS"], data["tokens_BL"], data["token_mask_BL"])
    assert not [name for name in features if name.startswith("object")]
    assert {"relation_BD", "matching_logits_B2"} <= set(features)


def test_evaluation_is_deterministic_and_dropout_is_only_for_training() -> None:
    model = tiny_model(text=tiny_text(dropout=0.5))
    data = batch()
    first, second = model(**data), model(**data)
    assert all(torch.equal(first[name], second[name]) for name in first)
    model.train()
    assert not torch.equal(model(**data)["text_BD"], model(**data)["text_BD"])


def test_objects_that_do_not_count_are_zeros_without_gradient() -> None:
    model = tiny_model().train()
    data = batch()
    data["boxes_BM4"][1, 0] = torch.tensor([0.5, 0.5, 0.6, 0.6])  # 0.16 patches of a 4 x 4 grid
    features = model(**data)
    mask_BM = features["object_mask_BM"]
    assert mask_BM.tolist() == [[True, False], [False, True], [True, True]]
    assert (features["object_BMD"][~mask_BM] == 0).all()
    features["object_BMD"][~mask_BM].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or (parameter.grad == 0).all(), name
    assert model.heads.object.weight.grad is not None  # part of the graph on every rank all the same


def test_logits_of_objects_that_do_not_count_have_no_gradient() -> None:
    model = tiny_model(prompt_head="classifier").train()
    features = model(**batch())
    features["object_logits_BMK"][~features["object_mask_BM"]].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or (parameter.grad == 0).all(), name
    assert model.heads.object[2].bias.grad is not None  # likewise


@pytest.mark.parametrize("num_objects", [0, 2])
def test_a_batch_without_objects_has_finite_zero_gradient(num_objects: int) -> None:
    model = tiny_model().train()
    data = batch()
    data["boxes_BM4"] = torch.zeros(3, num_objects, 4)
    data["box_mask_BM"] = torch.zeros(3, num_objects, dtype=torch.bool)
    features = model(**data)
    assert features["object_BMD"].shape == (3, num_objects, ENTITY_WIDTH)
    (features["object_BMD"] / features["object_temperature"]).sum().backward()
    for head in (model.heads.object.weight, model.heads.object_temperature.value):
        assert head.grad is not None
        assert (head.grad == 0).all()


def test_object_features_read_the_patches_in_their_box() -> None:
    model = tiny_model()
    data = batch(rows=1)
    data["boxes_BM4"] = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    data["box_mask_BM"] = torch.ones(1, 2, dtype=torch.bool)
    seen: list[Tensor] = []
    hook = model.fusion.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    objects_MD = model(**data)["object_BMD"][0]
    hook.remove()
    patches_HWC = seen[0][0, 1:].unflatten(0, (4, 4))  # without the photo's own vector
    for vector, inside in ((objects_MD[0], patches_HWC[:2, :2]), (objects_MD[1], patches_HWC[2:, 2:])):
        expected = torch.nn.functional.normalize(model.heads.object(inside.flatten(0, 1).mean(dim=0)), dim=0)
        torch.testing.assert_close(vector, expected)


def test_image_pooling_chooses_what_the_relation_head_reads() -> None:
    cls, patches = tiny_model(), tiny_model(image_pooling="patches")
    patches.load_state_dict(cls.state_dict())
    first, second = cls(**batch()), patches(**batch())
    assert torch.equal(first["matching_logits_B2"], second["matching_logits_B2"])
    assert not torch.allclose(first["relation_BD"], second["relation_BD"], atol=1e-3)


def test_bfloat16_weights_give_float32_features_near_those_of_float32() -> None:
    model = tiny_model()
    with torch.no_grad():
        expected = model(**batch())
        result = model.bfloat16()(**batch())
    for name, value in expected.items():
        assert result[name].dtype == value.dtype, name
        if value.is_floating_point():
            torch.testing.assert_close(result[name], value, atol=0.05, rtol=0.05, msg=name)


def test_backbones_are_the_modules_with_pretrained_weights() -> None:
    model = build_model(_small(), entity_width=ENTITY_WIDTH, relation_width=RELATION_WIDTH)
    backbone = {id(p) for module in model.backbone_modules() for p in module.parameters()}
    new = {name for name, p in model.named_parameters() if id(p) not in backbone}
    assert {name.rpartition(".")[0] for name in new if name.startswith("fusion")} == {
        "fusion.projection",
        "fusion.norm",
    }
    assert not [name for name in new if name.startswith(("text", "vision"))]
    assert [name for name in new if name.startswith("heads")]
    assert tiny_model().backbone_modules() == []


def test_fusion_needs_a_layer_and_the_banks_widths() -> None:
    whole = tiny_config(text=tiny_text(fusion_layer=4))
    with pytest.raises(ConfigError, match=r"BERT has 4 layers, so nothing is left.*choose 1 to 3"):
        build_model(whole, entity_width=8, relation_width=8)
    assert len(build_model(whole.model_copy(update={"fusion": False})).text.layers) == 4
    with pytest.raises(ConfigError, match="widths of both prompt banks"):
        build_model(tiny_config(), entity_width=8)
    with pytest.raises(ConfigError, match="numbers of prompts of both prompt banks"):
        build_model(tiny_config(prompt_head="classifier"), entity_width=8, relation_width=8, num_entities=8)


def test_config_reads_back_from_json() -> None:
    config = _small(image_pooling="patches")
    text = json.dumps(config.model_dump(mode="json"))
    assert ModelConfig.model_validate_json(text, strict=True) == config
    assert tiny_vision().image_size == 64
