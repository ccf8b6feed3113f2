"""CLIP and SigLIP as teachers, against transformers' own models and processors."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Siglip2Config,
    SiglipModel,
)

from promptmeup.config import dump, load
from promptmeup.errors import ConfigError, WeightsError
from promptmeup.prompts.crops import resize_square
from promptmeup.prompts.teacher import Teacher
from promptmeup.training.clip_teacher import ClipTeacher
from promptmeup.training.label import LabelRunConfig
from promptmeup.training.teacher import open_teacher
from tests.support.clip import SIZE, TEXT_LENGTH, clip_tokenizer, save_clip, save_siglip

TEXTS = ["a photo of a bridge", "protest", "the mayor of a city opens the bridge " * 3]
KINDS = ("clip", "siglip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {"clip": save_clip(root / "clip"), "siglip": save_siglip(root / "siglip")}


@pytest.fixture
def own(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of one of the two folders, to spoil."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / "elsewhere" / kind))

    return copy


def teacher_of(folder: Path) -> Teacher:
    return open_teacher(str(folder), device=torch.device("cpu"))


def message_of(folder: Path | str) -> str:
    with pytest.raises(WeightsError) as caught:
        open_teacher(str(folder), device=torch.device("cpu"))
    return str(caught.value)


def square_photos() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def encode_photos(teacher: Teacher, photos_BCSS: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.mean, teacher.std))
    squares_BCSS = torch.stack([resize_square(photo, size=teacher.image_size) for photo in photos_BCSS])
    return teacher.encode_images((squares_BCSS / 255 - mean) / std)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    folder, photos = folders[kind], square_photos()
    teacher = teacher_of(folder)
    model = {"clip": CLIPModel, "siglip": SiglipModel}[kind].from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(photo.permute(1, 2, 0).numpy()) for photo in photos], return_tensors="pt"
    )
    padding: dict[str, object] = {"padding": True} if kind == "clip" else {"padding": "max_length"}
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt", **padding
    )
    if kind == "siglip":  # was trained without a mask
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        images = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        texts = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    for found, expected in (
        (encode_photos(teacher, photos), images),
        (teacher.encode_texts(TEXTS), texts),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
        assert (found[0] - found[1]).abs().max() > 0.05  # or equality would say little


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_vector_in_any_company(kind: str, folders: dict[str, Path]) -> None:
    teacher = teacher_of(folders[kind])
    together, alone = teacher.encode_texts(TEXTS), [teacher.encode_texts([text]) for text in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_siglip_reads_lower_case(folders: dict[str, Path]) -> None:
    teacher = teacher_of(folders["siglip"])
    assert torch.equal(teacher.encode_texts(["Mayor Of LEEDS"]), teacher.encode_texts(["mayor of leeds"]))


def test_temperature_and_image_settings(folders: dict[str, Path]) -> None:
    clip, siglip = (teacher_of(folders[kind]) for kind in KINDS)
    assert clip.temperature == pytest.approx(math.exp(-2.6592), rel=1e-6)  # CLIP starts at 0.07
    assert siglip.temperature == pytest.approx(math.exp(-3.0), rel=1e-6)
    assert (clip.image_size, siglip.image_size) == (SIZE, SIZE)
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (siglip.mean, siglip.std) == ((0.5,) * 3, (0.5,) * 3)


def test_nothing_is_trainable(folders: dict[str, Path]) -> None:
    model = ClipTeacher(folders["clip"], device=torch.device("cpu"))._model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_directory_of_half_precision_is_read_as_float32(own: Callable[[str], Path]) -> None:
    folder = own("clip")
    CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    assert encode_photos(teacher_of(folder), square_photos()).dtype == torch.float32


def test_settings_in_one_file_of_the_whole_processor(own: Callable[[str], Path]) -> None:
    folder = own("clip")
    before = teacher_of(folder)
    processor = CLIPProcessor(AutoImageProcessor.from_pretrained(folder), clip_tokenizer())
    (folder / "preprocessor_config.json").unlink()
    processor.save_pretrained(folder)
    after = teacher_of(folder)
    assert (after.mean, after.std, after.image_size) == (before.mean, before.std, before.image_size)
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_of_a_copy_is_the_same(
    kind: str, folders: dict[str, Path], own: Callable[[str], Path]
) -> None:
    first = teacher_of(folders[kind])
    before = first.fingerprint
    assert len(before) == 16
    first.encode_texts(TEXTS)  # which sets the tokenizer's padding and truncation
    copy = own(kind)
    assert teacher_of(copy).fingerprint == before
    # a tokenizer that somebody saved after use is the same tokenizer
    used = AutoTokenizer.from_pretrained(copy)
    used(TEXTS, padding="max_length", truncation=True, max_length=9)
    used.save_pretrained(copy)
    assert teacher_of(copy).fingerprint == before


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_vocabulary(folder: Path) -> None:
    clip_tokenizer(merges=(("i", "n"), ("t", "h"))).save_pretrained(folder)


def change_mean(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])


def change_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [change_weight, change_vocabulary, change_mean, change_activation])
def test_fingerprint_follows_what_features_depend_on(
    change: Callable[[Path], None], folders: dict[str, Path], own: Callable[[str], Path]
) -> None:
    folder = own("clip")
    change(folder)
    assert teacher_of(folder).fingerprint != teacher_of(folders["clip"]).fingerprint


def test_the_two_kinds_differ(folders: dict[str, Path]) -> None:
    assert teacher_of(folders["clip"]).fingerprint != teacher_of(folders["siglip"]).fingerprint


def test_hub_names_stay_as_given() -> None:
    for name in ("openai/clip-vit-base-patch32", "quickstart/runs/teacher/model"):
        config = load(LabelRunConfig, None, [f"teacher={name}", "splits=[packed/train]"])
        assert config.teacher == name
        assert f"teacher: {name}\n" in dump(config)
    with pytest.raises(ConfigError, match="'teacher' = ''"):
        load(LabelRunConfig, None, ["teacher=''", "splits=[packed/train]"])


def test_a_hub_name_is_found_in_the_local_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--clip"
    shutil.copytree(folders["clip"], repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert teacher_of(Path("some/clip")).fingerprint == teacher_of(folders["clip"]).fingerprint


WAYS_OUT = ("RUN/model or RUN/best", "directory with a CLIP or SigLIP", "openai/clip-vit-base-patch32")


def test_unknown_names_say_what_a_teacher_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for source, reason in (
        (
            "openai/clip",
            "'openai/clip' is neither a local directory nor in the hub's local cache, and HF_HUB_O",
        ),
        ("runs/base/teacher/best", "runs/base/teacher/best does not exist"),
        (str(tmp_path), f"{tmp_path} holds no saved model (no model.json) and no CLIP or SigLIP (no config"),
    ):
        message = message_of(source)
        assert message.startswith(f"teacher: {reason}")
        for part in WAYS_OUT:
            assert part in message


def test_other_models_are_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    message = message_of(tmp_path / "bert")
    assert "bert holds a model of type 'bert'; a teacher is a CLIP or SigLIP" in message
    assert "RUN/model or RUN/best" in message
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    assert "NaFlex" in message_of(tmp_path / "naflex")
    assert "google/siglip2-base-patch16-224" in message_of(tmp_path / "naflex")
    (tmp_path / "bert" / "config.json").write_text("{")
    assert "cannot read" in message_of(tmp_path / "bert")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"do_center_crop": False}, "{'shortest_edge': 32}"),
        ({"crop_size": {"height": 32, "width": 48}}, "{'height': 32, 'width': 48}"),
        ({"crop_size": {"height": 48, "width": 48}}, "{'height': 48, 'width': 48}"),
    ],
)
def test_images_must_be_squares_of_the_models_size(
    values: dict[str, object], shown: str, own: Callable[[str], Path]
) -> None:
    folder = own("clip")
    edit(folder / "preprocessor_config.json", **values)
    message = message_of(folder)
    assert f"makes images of {shown}; a teacher takes squares" in message
    assert "here {'height': 32, 'width': 32}: set " in message


def test_missing_and_damaged_files(own: Callable[[str], Path]) -> None:
    folder = own("clip")
    (folder / "preprocessor_config.json").rename(folder / "hidden")
    assert "cannot read preprocessor_config.json" in message_of(folder)
    (folder / "hidden").rename(folder / "preprocessor_config.json")

    CLIPTokenizer().save_pretrained(folder)  # nothing but special tokens
    (folder / "tokenizer.json").write_text("{}")
    assert "cannot read a tokenizer" in message_of(folder)
    clip_tokenizer(merges=tuple((a, b) for a in "abc" for b in "def")).save_pretrained(folder)
    assert "knows 523 tokens, the model 516" in message_of(folder)
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in message_of(folder)

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights of the model: visual_projection.weight" in message_of(folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    assert "cannot read a CLIPModel" in message_of(folder)
