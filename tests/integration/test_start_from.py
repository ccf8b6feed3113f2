"""A student that starts from its teacher has the teacher's towers, and new fusion layers."""

from pathlib import Path

import pytest
import torch

from promptmeup.errors import WeightsError
from promptmeup.models.alignment import ModelConfig
from promptmeup.models.saving import load_model
from promptmeup.training.pretrain import build
from tests.integration.conftest import tiny_config


def _fixed(config: ModelConfig, temperature: float) -> ModelConfig:
    return config.model_copy(update={"temperature": temperature, "learn_temperature": False})


def test_start_from_teacher(news_world: Path, tmp_path: Path) -> None:
    config = tiny_config(news_world, f"out={tmp_path}", "steps=1", f"start_from={news_world}/teacher/model")
    student = build(config, None).state_dict()
    teacher = load_model(news_world / "teacher/model").state_dict()
    assert teacher.keys() < student.keys()
    assert all(torch.equal(student[name], tensor) for name, tensor in teacher.items())

    fixed = build(config.model_copy(update={"model": _fixed(config.model, 0.003)}), None)
    others = {name: value for name, value in fixed.state_dict().items() if name not in fixed.fixed()}
    assert all(torch.equal(others[name], teacher[name]) for name in teacher.keys() & others.keys())
    assert fixed.heads.temperature().item() == pytest.approx(0.003)
    assert abs(teacher["heads.temperature.value"].item() - 0.003) > 0.001

    with pytest.raises(WeightsError, match="no saved model"):
        build(tiny_config(news_world, f"out={tmp_path}", "steps=1", f"start_from={tmp_path}"), None)
