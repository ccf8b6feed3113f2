"""Operations and saved bytes, counted on the meta device, against the real model on a CPU and against a formula."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from promptmeup.errors import WeightsError
from promptmeup.models import cost
from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.cost import parameters_by_part, row_cost, saved_bytes
from promptmeup.models.layers import Checkpointing, checkpoint_layers, transformer_layers
from promptmeup.models.sketch import sketch, sketch_of
from promptmeup.models.text import TextConfig
from promptmeup.models.vision import VisionConfig
from tests.unit.models.support import LITE0, MINILM, tiny_config, tiny_model

BANKS = {"entity_width": 24, "relation_width": 20, "num_entities": 12, "num_relations": 9}
BASE = ModelConfig(
    text=TextConfig(weights="bert-base-uncased", fusion_layer=6),
    vision=VisionConfig(kind="transformers", weights="google/vit-base-patch16-224-in21k", image_size=224),
)
SMALL = ModelConfig(
    text=TextConfig(weights=MINILM, fusion_layer=4, dropout=0.0),
    vision=VisionConfig(kind="timm", weights=LITE0, image_size=128),
)
ROWS, LENGTH, OBJECTS = 4, 24, 3


def real_batch(model: AlignmentModel) -> tuple[torch.Tensor, ...]:
    size = model.config.vision.image_size
    boxes = torch.tensor([0.0, 0.0, 0.5, 0.5]).repeat(ROWS, OBJECTS, 1)
    return (
        torch.randn(ROWS, 3, size, size),
        torch.randint(0, 1000, (ROWS, LENGTH)),
        torch.ones(ROWS, LENGTH, dtype=torch.bool),
        boxes,
        torch.ones(ROWS, OBJECTS, dtype=torch.bool),
    )


def counted(model: AlignmentModel, counter: Any) -> tuple[float, float]:
    """Return the operations of a row's forward pass and of the whole step, as counted on the CPU."""
    with counter:
        features = model(*real_batch(model))
        forward = counter.get_total_flops()
        cost._backward(features)
    model.zero_grad(set_to_none=True)
    return forward / ROWS, counter.get_total_flops() / ROWS


@pytest.mark.parametrize(
    "config", [tiny_config(), tiny_config(prompt_head="classifier"), tiny_config(fusion=False)]
)
def test_operations_are_those_of_the_real_model(config: ModelConfig) -> None:
    model = build_model(config, **BANKS).train()
    found = row_cost(sketch_of(model), max_objects=OBJECTS)
    with sdpa_kernel(SDPBackend.MATH):
        forward, step = counted(model, FlopCounterMode(display=False))
    assert found.forward_flops(LENGTH) == pytest.approx(forward, rel=1e-9)
    assert found.step_flops(LENGTH) == pytest.approx(step, rel=1e-9)
    # fused attention makes its scores again in the backward pass, which is no work of the step;
    # torch 2.11 does not count that of a CPU at all
    if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry:
        _, with_repeats = counted(model, FlopCounterMode(display=False))
        assert 1 < with_repeats / found.step_flops(LENGTH) < 1.03


def test_operations_of_a_cnn() -> None:
    model = build_model(SMALL, **BANKS).train()
    found = row_cost(sketch_of(model), max_objects=OBJECTS)
    with sdpa_kernel(SDPBackend.MATH):
        forward, step = counted(model, FlopCounterMode(display=False))
        _, right = counted(model, cost._counter())
    assert found.forward_flops(LENGTH) == pytest.approx(forward, rel=1e-9)
    assert found.step_flops(LENGTH) == pytest.approx(right, rel=1e-9)
    # torch counts the gradient of a depthwise weight as if every channel met every other: when it no longer does, our
    # own formula can go
    assert step > 2 * right


def _layers(tokens: int, width: int, count: int) -> float:
    return count * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


@pytest.mark.parametrize("length", [40, 64])
def test_operations_at_the_papers_sizes_are_those_of_the_formula(length: int) -> None:
    """24 n d² + 4 n² d a layer of n tokens: 35.1 GFLOP the ViT, and with 40 tokens 59.7 all layers together."""
    found = row_cost(sketch(BASE, **BANKS), max_objects=OBJECTS)
    vision = _layers(197, 768, 12) + 2 * 196 * 768 * 768
    layers = vision + _layers(length, 768, 6) + _layers(length + 197, 768, 6)
    entrance = 2 * 197 * 768 * 768  # of image tokens into the fusion half
    assert found.forward_flops(length) == pytest.approx(layers + entrance, rel=1e-4)
    if length == 40:
        assert layers == pytest.approx(59.7e9, rel=1e-3)
    assert found.step_flops(length) == pytest.approx(3 * found.forward_flops(length), rel=5e-3)


@pytest.mark.parametrize("length", [13, 57])
def test_a_polynomial_of_the_length_is_exact(length: int) -> None:
    model = sketch_of(tiny_model())
    with cost._counter() as counter:
        cost._backward(cost.run(model, rows=3, length=length, max_objects=OBJECTS))
    found = row_cost(model, max_objects=OBJECTS).step_flops(length)
    assert found == pytest.approx(counter.get_total_flops() / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "checkpointing"),
    [(tiny_config(), "none"), (SMALL, "none"), (tiny_config(), "selective"), (tiny_config(), "full")],
)
def test_saved_bytes_are_what_the_allocator_gives(config: ModelConfig, checkpointing: Checkpointing) -> None:
    model = build_model(config, **BANKS).train()
    checkpoint_layers(model, checkpointing)
    batch = real_batch(model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        features = model(*batch)
    # the pixels wait too, for the gradient of what reads them, and were made before
    measured = sum(event.self_cpu_memory_usage for event in found.events()) + batch[0].nbytes
    del features
    if checkpointing != "none":  # each notes the state of the random numbers
        measured -= len(transformer_layers(model)) * torch.get_rng_state().nbytes
    estimate = saved_bytes(
        sketch_of(model), length=LENGTH, max_objects=OBJECTS, checkpointing=checkpointing
    ).of(ROWS)
    assert estimate == pytest.approx(measured, rel=0.02)


def test_bf16_saves_half() -> None:
    wide = saved_bytes(sketch(BASE, **BANKS), length=64, max_objects=OBJECTS)
    low = saved_bytes(sketch(BASE, **BANKS), length=64, max_objects=OBJECTS, dtype=torch.bfloat16)
    assert low.row / wide.row == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(prompt_head="classifier"), SMALL])
def test_a_sketch_is_the_model_without_values(config: ModelConfig) -> None:
    model, drawn = build_model(config, **BANKS), sketch(config, **BANKS)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in drawn.state_dict().items()} == shapes
    assert all(value.is_meta for value in drawn.state_dict().values())
    assert parameters_by_part(drawn) == parameters_by_part(model)


def test_well_known_sizes_need_no_files_and_others_are_not_guessed() -> None:
    found = parameters_by_part(sketch(BASE, **BANKS))
    assert found["vision"] == 85_798_656  # ViT-B/16 without its pooler
    assert (
        found["text"] + found["fusion"] == 108_891_648 + 768 * 768 + 3 * 768
    )  # BERT-base, and the image's way in
    for part, changed in (("text", "someone/bert"), ("vision", "someone/vit")):
        config = BASE.model_copy(update={part: getattr(BASE, part).model_copy(update={"weights": changed})})
        with pytest.raises(
            WeightsError, match=f"model.{part}.weights: the sizes of {changed} are not known here"
        ):
            sketch(config, **BANKS)
