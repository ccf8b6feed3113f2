import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptmeup.errors import WeightsError
from promptmeup.models.alignment import ModelConfig, build_model
from promptmeup.models.saving import (
    load_matching,
    load_model,
    load_saved_tokenizer,
    save_model,
    state_fingerprint,
)
from promptmeup.models.text import TextConfig, load_tokenizer
from promptmeup.models.vision import VisionConfig
from tests.unit.models.support import (
    LITE0,
    MINILM,
    NUM_ENTITIES,
    NUM_RELATIONS,
    batch,
    tiny_model,
    tiny_text,
)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(tiny_text())


def test_a_saved_student_gives_the_same_features(tmp_path: Path, tokenizer: object) -> None:
    model = tiny_model()
    save_model(tmp_path / "run" / "model", model, tokenizer=tokenizer)
    torch.manual_seed(9)
    again = load_model(tmp_path / "run" / "model")
    assert not again.training
    expected, result = model(**batch()), again(**batch())
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert again.config == model.config
    assert state_fingerprint(again) == state_fingerprint(model)
    assert not list((tmp_path / "run" / "model").glob(".*"))


def test_a_saved_model_with_classifiers_gives_the_same_features(tmp_path: Path, tokenizer: object) -> None:
    model = tiny_model(prompt_head="classifier")
    save_model(tmp_path, model, tokenizer=tokenizer)
    torch.manual_seed(9)
    again = load_model(tmp_path)
    assert (again.num_entities, again.num_relations) == (NUM_ENTITIES, NUM_RELATIONS)
    expected, result = model(**batch()), again(**batch())
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_a_model_saved_before_there_were_classifiers_loads(tmp_path: Path, tokenizer: object) -> None:
    model = tiny_model()
    save_model(tmp_path, model, tokenizer=tokenizer)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["num_entities"], description["num_relations"], description["config"]["prompt_head"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    assert state_fingerprint(load_model(tmp_path)) == state_fingerprint(model)


def test_a_saved_teacher_of_packaged_weights_needs_no_package(
    tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(
        text=TextConfig(weights=MINILM, fusion_layer=1),
        vision=VisionConfig(kind="timm", weights=LITE0, image_size=64),
        fusion=False,
    )
    model = build_model(config).eval()
    save_model(tmp_path, model, tokenizer=tokenizer)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    again = load_model(tmp_path)
    data = batch()
    assert torch.equal(again.encode_images(data["images_BCSS"]), model.encode_images(data["images_BCSS"]))
    assert (again.vision.mean, again.vision.std) == (model.vision.mean, model.vision.std)
    assert again.text.embeddings.dropout.p == 0.1
    assert load_saved_tokenizer(tmp_path)("Breaking news") == tokenizer("Breaking news")


def test_a_gathered_state_dict_is_saved_instead_of_the_models(tmp_path: Path, tokenizer: object) -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    save_model(tmp_path, model.bfloat16(), tokenizer=tokenizer, state=other.state_dict())
    assert state_fingerprint(load_model(tmp_path)) == state_fingerprint(other)


def test_absent_or_damaged_folders(tmp_path: Path, tokenizer: object) -> None:
    with pytest.raises(WeightsError, match=r"holds no saved model \(no model.json\)"):
        load_model(tmp_path)
    with pytest.raises(WeightsError, match="no readable tokenizer"):
        load_saved_tokenizer(tmp_path)
    save_model(tmp_path, tiny_model(), tokenizer=tokenizer)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"cannot read .*model.safetensors"):
        load_model(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"config": {"text": {}}}))
    with pytest.raises(WeightsError, match="does not describe a model of this version"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(description | {"schema": 2}))
    with pytest.raises(WeightsError, match="format version 2, this program reads 1"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(WeightsError, match=r"cannot read .*model.json"):
        load_model(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path, tokenizer: object) -> None:
    save_model(tmp_path, tiny_model(), tokenizer=tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["heads.image.weight"] = torch.zeros(3, 3)
    tensors["heads.images.bias"] = tensors.pop("heads.image.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"heads.image.weight, heads.image.bias, heads.images.bias"):
        load_model(tmp_path)


def test_a_fixed_temperature_is_saved_and_not_taken_from_a_teacher(tmp_path: Path, tokenizer: object) -> None:
    teacher = tiny_model(fusion=False)
    with torch.no_grad():
        teacher.heads.temperature.value.fill_(0.02)
    save_model(tmp_path / "teacher", teacher, tokenizer=tokenizer)
    for learns, expected in ((True, 0.02), (False, 0.005)):
        student = tiny_model(seed=1, temperature=0.005, learn_temperature=learns)
        loaded, missing = load_matching(student, tmp_path / "teacher", keep=student.fixed())
        assert ("heads.temperature.value" in loaded) is learns
        assert ("heads.temperature.value" in missing) is not learns
        save_model(tmp_path / "student", student, tokenizer=tokenizer)
        again = load_model(tmp_path / "student")
        assert again.config.learn_temperature is learns
        assert again.heads.temperature().item() == pytest.approx(expected)
        assert again.heads.relation_temperature().item() == pytest.approx(0.005)
        assert state_fingerprint(again) == state_fingerprint(student)


def test_a_student_starts_from_its_teacher(tmp_path: Path, tokenizer: object) -> None:
    teacher, student = tiny_model(fusion=False), tiny_model(seed=1)
    before = state_fingerprint(student.fusion)
    save_model(tmp_path, teacher, tokenizer=tokenizer)
    loaded, missing = load_matching(student, tmp_path)
    assert sorted(loaded) == sorted(teacher.state_dict())
    assert sorted(loaded + missing) == sorted(student.state_dict())
    assert all(name.startswith(("fusion.", "heads.")) for name in missing)
    data = batch()
    with torch.no_grad():
        assert torch.equal(
            student.encode_images(data["images_BCSS"]), teacher.encode_images(data["images_BCSS"])
        )
    assert state_fingerprint(student.fusion) == before


def test_tensors_of_another_shape_stay(tmp_path: Path, tokenizer: object) -> None:
    save_model(tmp_path, tiny_model(width=16), tokenizer=tokenizer)
    loaded, missing = load_matching(tiny_model(width=32), tmp_path)
    assert {"heads.image.weight", "heads.text.weight"} <= set(missing)
    assert "text.embeddings.LayerNorm.weight" in loaded


def test_nothing_that_fits_is_an_error(tmp_path: Path, tokenizer: object) -> None:
    save_model(tmp_path, tiny_model(), tokenizer=tokenizer)
    with pytest.raises(WeightsError, match=r"no tensor of .* fits this model"):
        load_matching(torch.nn.Linear(2, 2), tmp_path)
    # temperatures have one shape in all models, and some biases in many: they are no start
    strange = torch.nn.ModuleDict({"heads": torch.nn.ModuleDict({"temperature": torch.nn.Module()})})
    strange["heads"]["temperature"].value = torch.nn.Parameter(torch.zeros(1))  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match=r"no tensor of .* fits this model"):
        load_matching(strange, tmp_path)


def test_fingerprint_sees_every_value_and_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = state_fingerprint(model)
    assert len(before) == 16
    assert state_fingerprint(model) == before
    with torch.no_grad():
        model[1].running_mean[1] += 1e-6
    assert state_fingerprint(model) != before
    assert state_fingerprint(torch.nn.Sequential(model)) != state_fingerprint(model)
    assert len(state_fingerprint(model.bfloat16())) == 16
