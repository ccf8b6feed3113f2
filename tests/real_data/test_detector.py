"""The detector on real weights and photos."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptmeup.config import load
from promptmeup.data.reader import PackedSplit
from promptmeup.errors import WeightsError
from promptmeup.packing.detector import Detector, DetectorConfig
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.records import Box
from tests.support.real_data import ROOT, real_data

ONNX = "yolov8n_int8.onnx"
SAFETENSORS = "yolov8n_fused_dequant_from_int8.safetensors"


def asset(name: str) -> Image.Image:
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        pytest.skip("ultralytics is not installed")
    return Image.open(Path(spec.origin).parent / "assets" / name).convert("RGB")


def detector(name: str, *, image_size: int = 640, batch: int = 2) -> Detector:
    weights = str(real_data("detectors") / name)
    return Detector(DetectorConfig(weights=weights, image_size=image_size, batch=batch, device="cpu"))


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    inside = max(width, 0) * max(height, 0)
    return inside / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - inside)


@pytest.mark.parametrize(("name", "image_size"), [(ONNX, 640), (SAFETENSORS, 640), (SAFETENSORS, 416)])
def test_the_bus_and_its_people_are_found_where_they_are(name: str, image_size: int) -> None:
    finder = detector(name, image_size=image_size)
    bus, zidane = asset("bus.jpg"), asset("zidane.jpg")
    assert (bus.size, zidane.size) == ((810, 1080), (1280, 720))
    # three of one size and one of another: a batch that is full, one that is not, and one of its own
    found = finder.detect([bus, zidane, bus, bus])
    assert found[0] == found[2]
    labels = [box.label for box in found[0]]
    assert labels.count("bus") == 1
    assert labels.count("person") >= 3
    the_bus = next(box for box in found[0] if box.label == "bus")
    assert overlap(the_bus, Box(20, 230, 805, 755, "bus", 1.0)) > 0.85
    people = [box for box in found[0] if box.label == "person"]
    left_man = Box(50, 400, 245, 905, "person", 1.0)
    assert max(overlap(person, left_man) for person in people) > 0.85
    assert [box.label for box in found[1]].count("person") == 2
    assert all(0.25 <= box.score <= 1 for boxes in found for box in boxes)


def test_an_image_has_the_same_boxes_in_any_company() -> None:
    finder = detector(SAFETENSORS, image_size=320, batch=4)
    photos = [asset("bus.jpg").resize((288, 384)), asset("zidane.jpg").resize((512, 288))]
    photos += [photos[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT), photos[1]]
    together = finder.detect(photos)
    alone = [finder.detect([photo])[0] for photo in photos]
    for one, other in zip(together, alone, strict=True):
        assert [box.label for box in one] == [box.label for box in other]
        corners = ([(b.x0, b.y0, b.x1, b.y1, b.score) for b in boxes] for boxes in (one, other))
        np.testing.assert_allclose(*corners, atol=2e-3)
    assert finder.detect([]) == []


def test_limits_are_kept_and_the_weights_are_identified() -> None:
    weights = real_data("detectors") / SAFETENSORS
    finder = Detector(
        DetectorConfig(weights=str(weights), image_size=320, confidence=0.6, max_boxes=2, device="cpu")
    )
    (boxes,) = finder.detect([asset("bus.jpg")])
    assert len(boxes) == 2
    assert all(box.score >= 0.6 for box in boxes)
    assert finder.description["device"] == "cpu"
    assert finder.description["weights_sha256"].startswith("39e72a4e")


@pytest.mark.parametrize("suffix", [".pt", ".onnx", ".safetensors"])
def test_damaged_weights_are_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"broken{suffix}").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=f"broken{suffix} does not work"):
        Detector(DetectorConfig(weights=str(tmp_path / f"broken{suffix}"), device="cpu"))


def test_weights_of_another_architecture_do_not_fit() -> None:
    weights = str(real_data("detectors") / SAFETENSORS)
    with pytest.raises(WeightsError, match="does not work"):
        Detector(DetectorConfig(weights=weights, architecture="yolov8s.yaml", device="cpu"))


def test_a_name_that_cannot_be_downloaded_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*give its path"):
        Detector(DetectorConfig(weights="yolo11n.pt", device="cpu"))


def test_nothing_is_left_in_the_home_folder_or_the_working_one(tmp_path: Path) -> None:
    weights = real_data("detectors") / SAFETENSORS
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()
    shutil.copy(weights, tmp_path / "work" / "yolo.safetensors")
    code = (
        "from PIL import Image; from promptmeup.packing.detector import Detector, DetectorConfig;"
        "Detector(DetectorConfig(weights='yolo.safetensors', image_size=64)).detect([Image.new('RGB', (64, 64))]);"
        "from ultralytics.utils.events import events; assert not events.enabled"
    )
    environment = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "work", env=environment, check=True)
    assert not list((tmp_path / "home").iterdir())
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["yolo.safetensors"]
    assert not list((tmp_path / "tmp").glob("promptmeup-*")), "ultralytics' settings are gone"


def test_packing_looks_at_the_stored_image_where_the_corpus_brings_no_boxes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    bus = asset("bus.jpg")
    for name in ("bus.jpg", "known.jpg"):
        bus.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=exif)
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "grey.jpg")
    rows = [{"image": name, "caption": "A bus in Madrid."} for name in ("bus.jpg", "grey.jpg", "known.jpg")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    box = {"x0": 0, "y0": 0, "x1": 81, "y1": 108, "label": "x", "score": 1}
    (tmp_path / "boxes.jsonl").write_text(json.dumps({"image_path": "known.jpg", "boxes": [box]}))
    config = load(
        PackConfig,
        None,
        [
            *("corpus.kind=tabular", f"corpus.root={tmp_path}", "corpus.files.train=t.jsonl"),
            *("corpus.boxes=boxes.jsonl", f"out={tmp_path}/out", "splits=[train]", "processes=1"),
            *(f"detector.weights={real_data('detectors') / SAFETENSORS}", "detector.image_size=416"),
        ],
    )
    pack(config)
    split = PackedSplit(tmp_path / "out/train")
    found, grey, known = (split.read_json(i) for i in range(3))
    assert (found["width"], found["height"]) == (288, 384)
    boxes = [Box(**box) for box in found["boxes"]]
    assert overlap(boxes[0], Box(7, 82, 286, 268, "bus", 1.0)) > 0.85, "the largest comes first"
    assert boxes[0].label == "bus"
    assert found["boxes_by"] == "yolov8n_fused_dequant_from_int8 39e72a4e"
    assert grey["boxes"] == []
    assert known["boxes"] == [{"x0": 0.0, "y0": 0.0, "x1": 28.8, "y1": 38.4, "label": "x", "score": 1}], (
        "a corpus's own boxes are taken as they are"
    )
    assert known["boxes_by"] == "corpus"
    assert split.manifest.rejects == {"no_detections": 1}

    # the detector again, with other settings: photos and entities stay
    photos = [split.read_image(i) for i in range(3)]
    pack(
        config.model_copy(
            update={"stage": "boxes", "detector": config.detector.model_copy(update={"max_boxes": 1})}
        )
    )
    again = PackedSplit(tmp_path / "out/train")
    assert [again.read_image(i) for i in range(3)] == photos
    assert [len(again.read_json(i)["boxes"]) for i in range(3)] == [1, 0, 1]
    pack(config.model_copy(update={"stage": "boxes"}))
    assert PackedSplit(tmp_path / "out/train").manifest.fingerprint == split.manifest.fingerprint
