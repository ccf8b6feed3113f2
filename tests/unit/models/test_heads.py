import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from promptmeup.models.heads import Heads, Temperature, box_coverage, classifier, pool_boxes, unit

FINE = 40  # sub-cells a patch side in the slow reference; the boxes below lie on their edges


def _slow_coverage(box: list[float], *, grid: int) -> NDArray[np.float64]:
    """Count the sub-cells of each patch whose centre lies in the box."""
    result = np.zeros(grid * grid)
    centres = (np.arange(grid * FINE) + 0.5) / (grid * FINE)
    for y, row in enumerate(centres):
        for x, column in enumerate(centres):
            if box[0] < column < box[2] and box[1] < row < box[3]:
                result[(y // FINE) * grid + x // FINE] += 1 / FINE**2
    return result


BOXES = [
    [0.0, 0.0, 1.0, 1.0],
    [0.25, 0.5, 0.5, 0.75],
    [0.1, 0.3, 0.7, 0.95],
    [0.05, 0.05, 0.1, 0.1],
    [-0.5, 0.4, 0.3, 1.5],  # parts outside count nothing
    [0.6, 0.6, 0.6, 0.9],  # no area
    [0.9, 0.1, 0.2, 0.4],  # turned inside out: no area either
]


def test_coverage_is_each_patchs_share_of_the_box() -> None:
    coverage_MP = box_coverage(torch.tensor([BOXES]), grid=4)[0]
    assert coverage_MP.shape == (len(BOXES), 16)
    for box, row in zip(BOXES, coverage_MP, strict=True):
        np.testing.assert_allclose(row.numpy(), _slow_coverage(box, grid=4), atol=1e-5)


def test_coverage_sums_to_the_area_in_patches() -> None:
    torch.manual_seed(0)
    corners = torch.rand(3, 5, 2, 2).sort(dim=2).values
    boxes_BM4 = corners.flatten(2)
    area_BM = (corners[:, :, 1] - corners[:, :, 0]).prod(dim=-1) * 49
    torch.testing.assert_close(box_coverage(boxes_BM4, grid=7).sum(dim=-1), area_BM)


def test_pooling_is_the_weighted_mean() -> None:
    torch.manual_seed(0)
    patches_BPH = torch.randn(1, 16, 5)
    mask_BM = torch.ones(1, len(BOXES), dtype=torch.bool)
    pooled_BMH, valid_BM = pool_boxes(patches_BPH, torch.tensor([BOXES]), mask_BM, grid=4)
    for box, pooled, valid in zip(BOXES, pooled_BMH[0], valid_BM[0], strict=True):
        weights = _slow_coverage(box, grid=4)
        assert bool(valid) == (weights.sum() >= 1 - 1e-9)
        expected = weights @ patches_BPH[0].double().numpy() / weights.sum() if valid else np.zeros(5)
        np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [4, 7, 14])
def test_a_box_of_exactly_one_patch_counts_and_a_smaller_one_does_not(grid: int) -> None:
    cells = [(x / grid, y / grid, (x + 1) / grid, (y + 1) / grid) for x in range(grid) for y in range(grid)]
    boxes_BM4 = torch.tensor([cells])
    mask_BM = torch.ones(1, grid * grid, dtype=torch.bool)
    patches_BPH = torch.randn(1, grid * grid, 3)
    assert pool_boxes(patches_BPH, boxes_BM4, mask_BM, grid=grid)[1].all()
    smaller = boxes_BM4.clone()
    smaller[..., 2:] -= 0.01 / grid
    assert not pool_boxes(patches_BPH, smaller, mask_BM, grid=grid)[1].any()


def test_absent_boxes_may_hold_anything() -> None:
    boxes_BM4 = torch.full((1, 1, 4), float("nan"))
    mask_BM = torch.zeros(1, 1, dtype=torch.bool)
    pooled_BMH, valid_BM = pool_boxes(torch.randn(1, 16, 3), boxes_BM4, mask_BM, grid=4)
    assert not valid_BM.any()
    assert torch.equal(pooled_BMH, torch.zeros(1, 1, 3))


@pytest.mark.parametrize(
    ("value", "gradient", "expected"),
    [
        (0.07, 1.0, 1.0),
        (0.07, -1.0, -1.0),
        (0.5, -1.0, 0.0),  # descent would raise it beyond 0.5
        (0.7, -1.0, 0.0),
        (0.7, 1.0, 1.0),  # descent brings it back
        (0.0005, 1.0, 0.0),
        (0.0005, -1.0, -1.0),
    ],
)
def test_temperature_is_bounded_and_comes_back(value: float, gradient: float, expected: float) -> None:
    temperature = Temperature(value)
    result = temperature()
    assert result.shape == (1,)
    assert result.item() == pytest.approx(min(max(value, 0.001), 0.5))
    (result * gradient).sum().backward()
    assert temperature.value.grad is not None
    assert temperature.value.grad.item() == expected


def test_a_fixed_temperature_is_no_parameter() -> None:
    heads = Heads(
        vision_width=4, text_width=4, width=4, temperature=0.001, learn_temperature=False, fused=(4, 4)
    )
    parts = (heads.temperature, heads.object_temperature, heads.relation_temperature)
    assert not any("temperature" in name for name, _ in heads.named_parameters())
    assert all(torch.equal(part(), torch.tensor([0.001])) for part in parts)
    # saved and loaded under the same names as learnable ones
    learnable = Heads(vision_width=4, text_width=4, width=4, temperature=0.001, fused=(4, 4))
    assert heads.state_dict().keys() == learnable.state_dict().keys()


def test_temperature_that_stepped_over_the_limit_learns_again() -> None:
    temperature = Temperature(0.499)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.01)
    for goal in (2.0, 0.3):
        for _ in range(200):
            optimizer.zero_grad()
            (temperature() - goal).square().sum().backward()
            optimizer.step()
        assert temperature().item() == pytest.approx(min(goal, 0.5), abs=0.01)


def test_unit_is_float32_and_safe_at_zero() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    result = unit(vectors)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    result[0].sum().backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_classifier_is_the_papers_mlp() -> None:
    torch.manual_seed(0)
    head = classifier(6, 5)
    assert [tuple(p.shape) for p in head.parameters()] == [(12, 6), (12,), (5, 12), (5,)]
    states = torch.randn(3, 6)
    inner, outer = head[0], head[2]
    expected = (states @ inner.weight.T + inner.bias).clamp(min=0) @ outer.weight.T + outer.bias
    torch.testing.assert_close(head(states), expected)


def test_classifiers_have_no_temperature_of_their_own() -> None:
    heads = Heads(vision_width=8, text_width=6, width=4, temperature=0.07, fused=(7, 5), classifiers=True)
    modules = {name.partition(".")[0] for name, _ in heads.named_parameters()}
    assert modules == {"image", "text", "temperature", "object", "relation", "matching"}
    assert heads.object(torch.zeros(2, 6)).shape == (2, 7)
    assert heads.relation(torch.zeros(2, 6)).shape == (2, 5)


def test_dual_encoder_has_no_heads_of_fused_states() -> None:
    heads = Heads(vision_width=8, text_width=8, width=4, temperature=0.07, fused=None)
    modules = {name.partition(".")[0] for name, _ in heads.named_parameters()}
    assert modules == {"image", "text", "temperature"}
