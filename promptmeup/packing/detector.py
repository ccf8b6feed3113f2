"""Photos -> labelled boxes by an ultralytics YOLO; the only file that imports ultralytics (AGPL-3.0)."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from promptmeup.config import Config
from promptmeup.errors import WeightsError
from promptmeup.records import Box
from promptmeup.shard_format import file_sha256


class DetectorConfig(Config):
    """Which detector, and which of its boxes are kept."""

    weights: str = Field(min_length=1)
    """a file (.pt, .onnx, .safetensors, ...) or an ultralytics name such as yolo11n.pt, which is downloaded"""
    architecture: str = Field(default="yolov8n.yaml", min_length=1)
    """ultralytics' model file; read with .safetensors weights alone, which do not say it (80 COCO classes)"""
    confidence: float = Field(default=0.25, ge=0.0, lt=1.0)
    max_boxes: int = Field(default=20, ge=1, le=300)
    batch: int = Field(default=8, ge=1)
    """photos at once; on one CPU core 8 is faster than 16 and takes 340 MB less, a GPU can take more"""
    image_size: int = Field(default=640, ge=32, multiple_of=32)
    """longer side, in pixels, at which the detector looks; smaller is faster and misses small objects"""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")


class Detector:
    """A loaded detector; `detect` finds the boxes of any number of images.

    Raises:
        WeightsError: ultralytics or the weights are absent, the weights are damaged or do not fit.
    """

    def __init__(self, config: DetectorConfig) -> None:
        import torch  # takes seconds, and most packing processes need no detector

        self._config = config
        auto = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.device = auto if config.device == "auto" else config.device
        path = Path(config.weights)
        if not path.is_file() and (path.name != config.weights or path.suffix != ".pt"):
            raise WeightsError(
                f"detector.weights: there is no file {path}; give the path of YOLO weights, or a name "
                "such as yolo11n.pt that ultralytics downloads"
            )
        yolo = _import_yolo(offline=path.is_file())
        try:
            self._model = _load(yolo, path, architecture=config.architecture)
            # finds out now, not after an hour of reading, whether weights, size and device go together
            self.detect([Image.new("RGB", (64, 64), "grey")])
        except WeightsError:
            raise
        except Exception as error:  # ultralytics raises nearly anything here
            raise WeightsError(
                f"detector.weights: {config.weights} does not work with image_size={config.image_size} "
                f"on {self.device}: {error}; check the file, or download or export it again"
            ) from error
        self.description = {
            "weights_sha256": file_sha256(Path(self._model.ckpt_path or path)),
            "device": self.device.partition(":")[0],
            "ultralytics": metadata.version("ultralytics"),
        }
        self.name = f"{path.stem} {self.description['weights_sha256'][:8]}"

    def detect(self, images: Sequence[Image.Image]) -> list[tuple[Box, ...]]:
        """Return the boxes of each image, in its own pixels, most confident first.

        Works on one core: other processes have the others, and sums over several threads may round differently.

        Images of one size share a batch. Mixed sizes would be padded to a square, which costs a third more
        on photos of 3:2 and makes an image's boxes depend on its neighbours.
        """
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # ultralytics sets it as well, to one less than the cores
        try:
            return self._detect(images)
        finally:
            torch.set_num_threads(threads)

    def _detect(self, images: Sequence[Image.Image]) -> list[tuple[Box, ...]]:
        found: list[tuple[Box, ...]] = [()] * len(images)
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            by_size.setdefault(image.size, []).append(position)
        for positions in by_size.values():
            for start in range(0, len(positions), self._config.batch):
                part = positions[start : start + self._config.batch]
                for position, boxes in zip(part, self._predict([images[i] for i in part]), strict=True):
                    found[position] = boxes
        return found

    def _predict(self, images: list[Image.Image]) -> list[tuple[Box, ...]]:
        config = self._config
        results = self._model.predict(
            images,
            conf=config.confidence,
            max_det=config.max_boxes,
            imgsz=config.image_size,
            device=self.device,
            rect=True,
            verbose=False,
        )
        return [
            tuple(
                Box(x0, y0, x1, y1, str(result.names[int(kind)]), score)
                for (x0, y0, x1, y1), kind, score in zip(
                    result.boxes.xyxy.tolist(),
                    result.boxes.cls.tolist(),
                    result.boxes.conf.tolist(),
                    strict=True,
                )
            )
            for result in results
        ]


def _import_yolo(*, offline: bool) -> Any:
    """Import ultralytics' YOLO class with no installs, no telemetry and no files in the user's home."""
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    if offline:
        os.environ.setdefault("YOLO_OFFLINE", "true")
    if "YOLO_CONFIG_DIR" not in os.environ:  # read once, at the import
        folder = tempfile.mkdtemp(prefix="promptmeup-yolo-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["YOLO_CONFIG_DIR"] = folder
    image_open = Image.open
    try:
        from ultralytics import YOLO
        from ultralytics.utils.events import events
    except ImportError as error:
        raise WeightsError(
            f"packing with a detector needs ultralytics ({error}): pip install 'promptmeup[detect]', "
            "or use a corpus that brings boxes and leave `detector` out"
        ) from error
    finally:
        # it puts its own there, for which a damaged photo is a missing HEIF plugin and no photo that cannot be read
        Image.open = image_open
    events.enabled = False
    return YOLO


def _load(yolo: Any, path: Path, *, architecture: str) -> Any:
    if path.suffix != ".safetensors":
        try:
            return yolo(str(path), task="detect")
        except (ConnectionError, FileNotFoundError) as error:
            raise WeightsError(
                f"detector.weights: {path} is no file here and cannot be downloaded: {error}; "
                "download it elsewhere and give its path"
            ) from error
    from safetensors.torch import load_file
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    model = yolo(architecture, task="detect")
    weights = load_file(path)
    if not any(".bn." in name for name in weights):  # saved after batch norm was folded into the convolutions
        model.model.fuse()
    model.model.load_state_dict(weights)
    names = YAML.load(check_yaml("coco.yaml"))["names"]
    if len(model.model.names) != len(names):
        raise WeightsError(
            f"detector.weights: {path} has {len(model.model.names)} classes and no names for them; "
            f"only the {len(names)} COCO classes are known for .safetensors: give the .pt file instead"
        )
    model.model.names = names
    return model
