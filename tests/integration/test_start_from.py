"""A student that starts from its teacher has the teacher's towers, and new fusion layers."""

from pathlib import Path

import pytest
import torch

from promptmeup.errors import WeightsError
from promptmeup.models.saving import load_model
from promptmeup.training.pretrain import build
from tests.integration.conftest import tiny_config


def test_start_from_teacher(news_world: Path, tmp_path: Path) -> None:
    config = tiny_config(news_world, f"out={tmp_path}", "steps=1", f"start_from={news_world}/teacher/model")
    student = build(config, None).state_dict()
    teacher = load_model(news_world / "teacher/model").state_dict()
    assert teacher.keys() < student.keys()
    assert all(torch.equal(student[name], tensor) for name, tensor in teacher.items())

    with pytest.raises(WeightsError, match="no saved model"):
        build(tiny_config(news_world, f"out={tmp_path}", "steps=1", f"start_from={tmp_path}"), None)
