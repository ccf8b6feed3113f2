"""Groups cover every trainable parameter once; the schedule has its corners where it should."""

import itertools

import pytest
import torch
from torch import nn

from promptmeup.training.optim import OptimConfig, build_optimizer, parameter_groups, rate_scale, set_rates
from tests.unit.models.support import tiny_model


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor([0.07]))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_groups() -> None:
    model = Model()
    config = OptimConfig(lr=1e-3, backbone_lr=1e-4, weight_decay=0.1)
    groups = parameter_groups(model, backbones=[model.backbone], config=config)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        id(model.backbone[0].weight): (1e-4, 0.1),
        id(model.backbone[0].bias): (1e-4, 0.0),
        id(model.backbone[1].weight): (1e-4, 0.0),
        id(model.backbone[1].bias): (1e-4, 0.0),
        id(model.head.weight): (1e-3, 0.1),
        id(model.head.bias): (1e-3, 0.0),
        id(model.temperature): (1e-3, 0.0),
    }


@pytest.mark.parametrize("lr", [1e-3, 1e-4, 1e-5])
def test_groups_keep_their_places_whatever_the_rates(lr: float) -> None:
    """A checkpoint restores them by place, and a lower rate is what helps a run that has gone wrong."""
    model = Model()
    config = OptimConfig(lr=lr, backbone_lr=1e-4, weight_decay=0.1)
    groups = parameter_groups(model, backbones=[model.backbone], config=config)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(lr, 0.0), (lr, 0.1), (1e-4, 0.0), (1e-4, 0.1)]
    assert [[*map(id, g["params"])] for g in groups[1::2]] == [
        [id(model.head.weight)],
        [id(model.backbone[0].weight)],
    ]


def test_classifiers_are_in_one_group_each_by_their_dimensions() -> None:
    model = tiny_model(prompt_head="classifier")
    groups = parameter_groups(model, backbones=model.backbone_modules(), config=OptimConfig(weight_decay=0.1))
    for head in (model.heads.object, model.heads.relation):
        for parameter in head.parameters():
            found = [g["weight_decay"] for g in groups if any(p is parameter for p in g["params"])]
            assert found == [0.1 if parameter.ndim == 2 else 0.0]


def test_fixed_temperatures_are_in_no_group() -> None:
    def sizes(**changes: object) -> list[list[torch.Size]]:
        model = tiny_model(**changes)
        groups = parameter_groups(model, backbones=model.backbone_modules(), config=OptimConfig())
        return [[p.shape for p in group["params"]] for group in groups]

    learnt, fixed = sizes(), sizes(learn_temperature=False)
    assert len(learnt) == len(fixed)
    assert sum(map(len, learnt)) - sum(map(len, fixed)) == 3
    assert sum(shapes.count(torch.Size([1])) for shapes in fixed) == 0


def test_rates() -> None:
    config = OptimConfig(warmup=0.1, decay="cosine", final=0.01)
    scales = [rate_scale(step, total_steps=100, config=config) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == pytest.approx(1)
    assert scales[10] == pytest.approx(1)
    assert scales[55] == pytest.approx(0.505)
    assert scales[99] < 0.012
    assert all(a >= b for a, b in itertools.pairwise(scales[10:]))
    linear = OptimConfig(warmup=0, decay="linear", final=0)
    assert rate_scale(25, total_steps=100, config=linear) == pytest.approx(0.75)
    constant = OptimConfig(warmup=0, decay="none")
    assert rate_scale(99, total_steps=100, config=constant) == 1


def test_set_rates_scales_each_group() -> None:
    model = Model()
    optimizer = build_optimizer(
        model, backbones=[model.backbone], config=OptimConfig(lr=1e-3, backbone_lr=1e-4)
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    set_rates(optimizer, peaks=peaks, scale=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [peak / 2 for peak in peaks]
