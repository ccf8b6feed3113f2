"""What fine-tuning may start from, and that it starts with exactly those weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptmeup.errors import ConfigError, WeightsError
from promptmeup.extraction.start import EncodersConfig, open_start
from promptmeup.models.alignment import ModelConfig, build_model
from promptmeup.models.fused import fused_encoder
from promptmeup.models.saving import load_model, save_model
from promptmeup.models.text import load_tokenizer
from tests.support.extraction_models import save_bert
from tests.support.tiny_alignment import TINY

NOTHING = EncodersConfig()
VISION = EncodersConfig.model_validate({"vision": TINY.vision.model_dump(mode="json"), "fusion_layer": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "run"
    torch.manual_seed(0)
    for name in ("model", "best"):
        model = build_model(TINY, entity_width=16, relation_width=16)
        save_model(folder / name, model, tokenizer=load_tokenizer(TINY.text))
    (folder / "journal.jsonl").touch()
    return folder


@pytest.mark.parametrize(("source", "expected"), [("", "best"), ("best", "best"), ("model", "model")])
def test_a_run_is_its_best_model(run: Path, source: str, expected: str) -> None:
    found = open_start(str(run / source), encoders=NOTHING, text_only=False)
    own = fused_encoder(load_model(run / expected)).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.encoder.state_dict().items())
    assert found.run == run, "fine-tuning is its child"
    other = open_start(str(run / "model"), encoders=NOTHING, text_only=True)
    assert other.encoder.vision is None
    assert other.vision is None


def test_a_run_without_a_model_yet(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(WeightsError, match=r"has saved no model yet .* launch/export\.py"):
        open_start(str(tmp_path), encoders=NOTHING, text_only=False)


def test_a_teacher_has_no_fusion_half(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(TINY.model_dump(mode="json") | {"fusion": False})
    save_model(tmp_path / "model", build_model(config), tokenizer=load_tokenizer(TINY.text))
    with pytest.raises(WeightsError, match=r"is a dual encoder \(a teacher\)"):
        open_start(str(tmp_path), encoders=NOTHING, text_only=False)


def test_plain_encoders(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"reads text only; give a vision encoder with encoders\.vision"):
        open_start(str(bert), encoders=NOTHING, text_only=False)
    found = open_start(str(bert), encoders=VISION, text_only=False)
    assert found.encoder.vision is not None
    assert found.run is None
    alone = open_start(str(bert), encoders=NOTHING, text_only=True)
    assert alone.encoder.vision is None
    assert len(alone.encoder.text.layers) + len(alone.encoder.fusion.layers) == 2


def test_a_fine_tuned_model_goes_on(tiny: dict[str, Path]) -> None:
    found = open_start(str(tiny["entities"]), encoders=NOTHING, text_only=False)
    assert found.encoder.vision is not None
    with pytest.raises(ConfigError, match=r"was fine-tuned with a vision encoder: set data\.text_only=false"):
        open_start(str(tiny["entities"]), encoders=NOTHING, text_only=True)
    with pytest.raises(ConfigError, match=r"with no vision encoder: set data\.text_only=true"):
        open_start(str(tiny["text"]), encoders=NOTHING, text_only=False)


def test_encoders_of_ones_own_beside_a_model_of_ours(run: Path, tiny: dict[str, Path]) -> None:
    """They would be left alone without a word, in a sweep over them, say."""
    for source in (run, tiny["entities"]):
        with pytest.raises(
            ConfigError, match=r"encoders\.\* go with a plain BERT, and model=.* is a model of ours"
        ):
            open_start(str(source), encoders=EncodersConfig(dropout=0.5), text_only=False)


def test_a_folder_without_all_its_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny["entities"], tmp_path / "best")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "layers" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"does not fit its config.json; missing or unknown: .* and \d+ more"
    ):
        open_start(str(folder), encoders=NOTHING, text_only=False)
