import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from promptmeup.errors import ConfigError, WeightsError
from promptmeup.models.vision import VisionConfig, VisionEncoder, build_vision, vision_from_description
from promptmeup.models.vision_weights import load_efficientnet_lite0
from promptmeup.models.weights import find
from tests.unit.models.support import LITE0, tiny_vision

VIT = "vit_tiny_patch16_224"
BUSES = {654, 779, 874}  # minibus, school bus, trolleybus
UNIFORM = {652}  # military uniform


def _photo(package: str, *path: str) -> Image.Image:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Image.open(Path(spec.submodule_search_locations[0]).joinpath(*path)).convert("RGB")


def _pixels(photo: Image.Image, vision: VisionEncoder, *, size: int) -> Tensor:
    array = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    normal = (torch.from_numpy(array) - torch.tensor(vision.mean)) / torch.tensor(vision.std)
    return normal.permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        (("ultralytics", "assets", "bus.jpg"), BUSES),
        (("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg"), UNIFORM),
    ],
)
def test_packaged_efficientnet_knows_what_real_photos_show(photo: tuple[str, ...], classes: set[int]) -> None:
    vision = build_vision(VisionConfig(kind="timm", weights=LITE0, image_size=224)).eval()
    classifier = load_efficientnet_lite0(find(LITE0, key="k")).eval()
    pixels = _pixels(_photo(*photo), vision, size=224)
    with torch.no_grad():
        logits = classifier(pixels)
        vector_BH, _ = vision(pixels)
    assert classes & set(logits[0].topk(5).indices.tolist())
    # the encoder is the same network up to its classifier
    torch.testing.assert_close(classifier.classifier(vector_BH), logits)


def test_packaged_efficientnet_at_128_pixels() -> None:
    vision = build_vision(VisionConfig(kind="timm", weights=LITE0, image_size=128)).eval()
    vector_BH, tokens_BPH = vision(torch.randn(2, 3, 128, 128))
    assert (vision.width, vision.grid) == (1280, 4)
    assert tokens_BPH.shape == (2, 16, 1280)
    torch.testing.assert_close(tokens_BPH.mean(dim=1), vector_BH)
    assert vision.mean == pytest.approx((0.498039,) * 3, abs=1e-6)
    assert vision.std == pytest.approx((0.501961,) * 3, abs=1e-6)


def test_tokens_are_in_rows_from_the_top_left() -> None:
    vision = build_vision(VisionConfig(kind="timm", weights=LITE0, image_size=256)).eval()
    gray = torch.zeros(1, 3, 256, 256)
    corner = gray.clone()
    corner[..., :64, 192:] = torch.randn(3, 64, 64)  # top right
    with torch.no_grad():
        change_P = (vision(corner)[1] - vision(gray)[1]).norm(dim=-1)[0]
    change_HW = change_P.unflatten(0, (8, 8))
    assert change_HW[:4, 4:].sum() > 2 / 3 * change_HW.sum()


def test_another_checkpoint_in_the_package_is_refused(tmp_path: Path) -> None:
    state = torch.load(find(LITE0, key="k"), weights_only=True)
    names = list(state)
    swapped = dict(zip([names[1], names[0], *names[2:]], [state[names[1]], state[names[0]]], strict=False))
    torch.save(swapped | {name: state[name] for name in names[2:]}, tmp_path / "swapped.pth")
    with pytest.raises(WeightsError, match=r"2 of another shape: _bn0.weight \(32,\) for conv_stem.weight"):
        load_efficientnet_lite0(tmp_path / "swapped.pth")
    torch.save({name: state[name] for name in names[:-2]}, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=f"{len(names) - 2} tensors instead of {len(names)}"):
        load_efficientnet_lite0(tmp_path / "short.pth")


def test_random_vit() -> None:
    vision = build_vision(tiny_vision(image_size=80)).eval()
    vector_BH, tokens_BPH = vision(torch.randn(2, 3, 80, 80))
    assert (vision.width, vision.grid) == (48, 5)
    assert (vector_BH.shape, tokens_BPH.shape) == ((2, 48), (2, 25, 48))


def _save_vit(folder: Path) -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = ViTConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    model = ViTForImageClassification(sizes).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    return model


def test_transformers_directory_at_its_own_and_at_another_size(tmp_path: Path) -> None:
    saved = _save_vit(tmp_path)
    vision = build_vision(VisionConfig(kind="transformers", weights=str(tmp_path), image_size=64)).eval()
    images_BCSS = torch.randn(2, 3, 64, 64)
    expected = saved.vit(images_BCSS).last_hidden_state
    vector_BH, tokens_BPH = vision(images_BCSS)
    assert torch.equal(vector_BH, expected[:, 0])
    assert torch.equal(tokens_BPH, expected[:, 1:])
    assert (vision.mean, vision.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    larger = build_vision(VisionConfig(kind="transformers", weights=str(tmp_path), image_size=96))
    assert larger.grid == 6


def test_a_damaged_file_of_a_transformers_directory_is_named(tmp_path: Path) -> None:
    _save_vit(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="cannot read a ViT from"):
        build_vision(VisionConfig(kind="transformers", weights=str(tmp_path), image_size=64))


def test_timm_directory_and_file_with_resized_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = timm.create_model(VIT, pretrained=False).eval()
    torch.nn.init.normal_(saved.pos_embed)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    settings = {"architecture": VIT, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    vision = build_vision(VisionConfig(kind="timm", weights=str(tmp_path), image_size=224)).eval()
    images_BCSS = torch.randn(1, 3, 224, 224)
    expected = saved.forward_features(images_BCSS)
    vector_BH, tokens_BPH = vision(images_BCSS)
    torch.testing.assert_close(vector_BH, expected[:, 0])
    torch.testing.assert_close(tokens_BPH, expected[:, 1:])
    assert vision.mean == (0.1, 0.2, 0.3)

    file = str(tmp_path / "model.safetensors")
    smaller = build_vision(VisionConfig(kind="timm", weights=file, architecture=VIT, image_size=96))
    assert smaller.grid == 6
    positions = smaller.backbone.pos_embed
    torch.testing.assert_close(positions[:, 0], saved.pos_embed[:, 0])  # CLS's is not resized
    assert positions.shape == (1, 37, 192)


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    config = VisionConfig(
        kind="timm", weights=str(tmp_path / "resnet.pth"), architecture="resnet18", image_size=64
    )
    with pytest.raises(WeightsError, match=r"does not fit resnet18: .*more; set model.vision.architecture"):
        build_vision(config)


def test_wrong_sources(tmp_path: Path) -> None:
    empty = VisionConfig(kind="timm", weights=str(tmp_path), image_size=64)
    with pytest.raises(ConfigError, match="names none; give timm's name"):
        build_vision(empty)
    with pytest.raises(WeightsError, match=r"neither model.safetensors nor pytorch_model.bin"):
        build_vision(empty.model_copy(update={"architecture": "resnet10t"}))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    broken = {"weights": str(tmp_path / "broken.pth"), "architecture": "resnet10t"}
    with pytest.raises(WeightsError, match=r"cannot read .*broken.pth"):
        build_vision(empty.model_copy(update=broken))
    with pytest.raises(WeightsError, match="cannot read a ViT"):
        build_vision(VisionConfig(kind="transformers", weights=str(tmp_path), image_size=64))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(WeightsError, match="'clip' model"):
        build_vision(VisionConfig(kind="transformers", weights=str(tmp_path), image_size=64))


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("resnet8teen", 64, "close: resnet18"),
        ("resnet10t", 100, r"100 is not a multiple of this backbone's 32 px a token; choose 96 or 128"),
        ("mobilenetv3_small_050", 64, "needed are equal widths"),
        ("swin_tiny_patch4_window7_224", 224, "needed are equal widths|square grid"),
    ],
)
def test_backbones_that_do_not_fit(architecture: str, size: int, message: str) -> None:
    config = VisionConfig(kind="timm", weights="random", architecture=architecture, image_size=size)
    with pytest.raises(ConfigError, match=message):
        build_vision(config)


def test_vit_size_that_is_no_multiple_of_the_patch() -> None:
    with pytest.raises(ConfigError, match=r"70 is not a multiple.* choose 64 or 80"):
        build_vision(tiny_vision(image_size=70))
    with pytest.raises(ConfigError, match=r"multiple|70"):
        build_vision(VisionConfig(kind="timm", weights="random", architecture=VIT, image_size=70))


@pytest.mark.parametrize("mode", ["frozen", "trained"])
def test_batch_norm_statistics(mode: str) -> None:
    config = VisionConfig(
        kind="timm", weights="random", architecture="resnet10t", image_size=64, batch_norm=mode
    )
    vision = build_vision(config)
    assert vision.training
    images_BCSS = torch.randn(4, 3, 64, 64)
    together, _ = vision(images_BCSS)
    alone, _ = vision(images_BCSS[:1])
    assert torch.allclose(together[:1], alone, atol=1e-5) == (mode == "frozen")


@pytest.mark.parametrize(
    "config",
    [
        tiny_vision(),
        VisionConfig(kind="timm", weights=LITE0, image_size=64),
        VisionConfig(kind="timm", weights="random", architecture=VIT, image_size=64),
    ],
)
def test_description_builds_the_same_architecture(config: VisionConfig) -> None:
    vision = build_vision(config).eval()
    again = vision_from_description(config, json.loads(json.dumps(vision.description))).eval()
    again.load_state_dict(vision.state_dict())
    images_BCSS = torch.randn(1, 3, 64, 64)
    assert torch.equal(vision(images_BCSS)[1], again(images_BCSS)[1])
    assert (vision.mean, vision.std, vision.grid) == (again.mean, again.std, again.grid)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "timm", "weights": "random"}, "needs an architecture"),
        ({"kind": "transformers", "weights": LITE0}, "needs kind: timm"),
        ({"kind": "timm", "weights": LITE0, "architecture": "resnet18"}, "tf_efficientnet_lite0"),
        ({"kind": "transformers", "weights": "random", "hidden": 30}, "30 is not a multiple of heads 4"),
    ],
)
def test_wrong_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VisionConfig(image_size=64, **values)
