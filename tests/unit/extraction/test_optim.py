"""Learning rates by part: no parameter is left out, the CRF and the heads learn faster, lower layers slower."""

import pytest
import torch

from promptmeup.extraction.optim import FinetuneOptimConfig, build_optimizer, parameter_rates
from promptmeup.models.alignment import build_model
from promptmeup.models.extraction import EntityConfig, EntityModel, RelationConfig, RelationModel
from promptmeup.models.fused import describe_encoder, fused_encoder
from tests.support.tiny_alignment import TINY

CONFIG = FinetuneOptimConfig(
    lr=1e-4, layer_decay=0.5, vision_lr=1e-5, head_lr=1e-3, crf_lr=1e-2, weight_decay=0.1
)


def model(
    task: str = "entities", *, text_only: bool = False, head: str = "linear"
) -> EntityModel | RelationModel:
    encoder = fused_encoder(build_model(TINY, entity_width=16, relation_width=16), text_only=text_only)
    description = describe_encoder(encoder, vision=None if text_only else TINY.vision)
    if task == "entities":
        return EntityModel(EntityConfig(encoder=description, labels=("O", "B-PER", "I-PER")))
    return RelationModel(RelationConfig(encoder=description, labels=("None", "in"), none="None", head=head))


@pytest.mark.parametrize("task", ["entities", "relations"])
@pytest.mark.parametrize("text_only", [False, True])
def test_every_parameter_is_in_one_group(task: str, text_only: bool) -> None:
    whole = model(task, text_only=text_only)
    optimizer = build_optimizer(whole, config=CONFIG)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in whole.parameters())


def test_rates_by_part() -> None:
    whole = model()
    rates = parameter_rates(whole, CONFIG)
    found = {name: rates[id(p)] for name, p in whole.named_parameters()}
    # three layers: one of the text half, two of the fusion half
    assert found["encoder.fusion.layers.1.output.dense.weight"] == 1e-4
    assert found["encoder.fusion.layers.0.output.dense.weight"] == pytest.approx(0.5e-4)
    assert found["encoder.text.layers.0.output.dense.weight"] == pytest.approx(0.25e-4)
    assert found["encoder.text.embeddings.word_embeddings.weight"] == pytest.approx(0.125e-4)
    assert found["encoder.fusion.projection.weight"] == 1e-4
    assert found["encoder.vision.backbone.layernorm.weight"] == 1e-5
    assert found["encoder.no_image"] == found["classifier.weight"] == 1e-3
    assert found["crf.transitions"] == found["crf.start"] == found["crf.end"] == 1e-2


def test_decay_is_for_matrices_and_not_for_the_crf() -> None:
    whole = model()
    optimizer = build_optimizer(whole, config=CONFIG)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in whole.named_parameters()}
    assert found["classifier.weight"] == found["encoder.text.embeddings.word_embeddings.weight"] == 0.1
    assert found["classifier.bias"] == found["encoder.no_image"] == 0
    assert found["crf.transitions"] == 0, "a score towards 0 is no simpler model"


def test_a_rate_of_zero_freezes_the_vision_encoder() -> None:
    whole = model()
    optimizer = build_optimizer(whole, config=CONFIG.model_copy(update={"vision_lr": 0.0}))
    assert whole.encoder.vision is not None
    frozen = {id(p) for p in whole.encoder.vision.parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(not p.requires_grad for p in whole.encoder.vision.parameters())
    assert whole.encoder.no_image.requires_grad


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_relation_head_trains(head: str) -> None:
    """HVPNeT's optimizer leaves it out, by a name that does not occur."""
    torch.manual_seed(0)
    whole = model("relations", head=head)
    optimizer = build_optimizer(whole, config=CONFIG)
    before = {name: p.clone() for name, p in whole.named_parameters()}
    tokens_BL = torch.randint(1000, 2000, (4, 8))
    loss = whole(
        input_ids=tokens_BL,
        attention_mask=torch.ones(4, 8, dtype=torch.bool),
        marker_positions=torch.tensor([[1, 3]] * 4),
        pixel_values=torch.randn(4, 3, 32, 32),
        image_mask=torch.tensor([True, True, False, True]),
        labels=torch.tensor([0, 1, 1, 0]),
    ).loss
    loss.backward()
    optimizer.step()
    # attention is indifferent to a constant added to all keys
    unmoved = [
        n for n, p in whole.named_parameters() if torch.equal(p, before[n]) and not n.endswith("key.bias")
    ]
    assert not unmoved
