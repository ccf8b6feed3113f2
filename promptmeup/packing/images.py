"""Photo file -> the JPEG that is stored: upright, RGB, its shorter side reduced, no metadata."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from promptmeup.corpora.paths import refusal
from promptmeup.records import Sample

MIN_SIDE = 32
"""pixels; spacers and icons, not photos"""
MAX_ASPECT = 5.0
"""longer over shorter side; banners, of which a square crop shows next to nothing"""
MAX_PIXELS = 89_478_485
"""Pillow's own limit, above which it suspects a decompression bomb"""
# Pillow knows more, among them EPS, which starts an interpreter on what the corpus brings.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_TURNED_ASIDE = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
_ORIENTATION = 0x0112


class BadImageError(Exception):
    """An image that cannot be packed; `reason` is the one for rejects.jsonl."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class StoredImage:
    """An encoded image, and the size of the upright original that it was made of."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int

    @property
    def scale_x(self) -> float:
        """Stored pixels per original pixel."""
        return self.width / self.original_width

    @property
    def scale_y(self) -> float:
        return self.height / self.original_height

    def open(self) -> Image.Image:
        """Return what a reader of the shard will see, JPEG's losses included."""
        return Image.open(io.BytesIO(self.jpeg))


def keep_memory() -> None:
    """Let Pillow keep freed memory for the next image (8 blocks at most) instead of returning it to the system.

    For a process that reads many photos: 97 -> 110 of them a second.
    """
    Image.core.set_blocks_max(8)  # type: ignore[attr-defined]


def read_photo(sample: Sample, root: Path, *, shorter_side: int, quality: int) -> StoredImage:
    """Return the photo of `sample` as it is stored; nothing outside the folder `root` is opened.

    Raises:
        BadImageError: path_escapes_root, missing_image, unreadable_image or bad_image_size.
    """
    if refused := refusal(sample.image_path, folder=root, real_folder=os.path.realpath(root)):
        raise BadImageError(*refused)
    path = root / sample.image_path
    if sample.member is None:
        return prepare_image(path, shorter_side=shorter_side, quality=quality)
    offset, size = sample.member
    try:
        with path.open("rb") as archive:
            archive.seek(offset)
            content = archive.read(size)
    except OSError as error:
        raise BadImageError("unreadable_image", f"{path.name}: {error.strerror}") from error
    return prepare_image(io.BytesIO(content), shorter_side=shorter_side, quality=quality)


def prepare_image(source: Path | BinaryIO, *, shorter_side: int, quality: int) -> StoredImage:
    """Read the photo `source`, turn it upright, reduce its shorter side to `shorter_side`, encode it.

    A smaller image keeps its size. The same file gives the same bytes with the same Pillow.

    Raises:
        BadImageError: missing_image, unreadable_image or bad_image_size.
    """
    try:
        if isinstance(source, Path):
            if not source.exists():
                raise BadImageError("missing_image", "no such file")
            if not source.is_file():  # opening a named pipe would wait for ever
                raise BadImageError("unreadable_image", "not a file")
        with Image.open(source, formats=FORMATS) as image:
            return _prepare(image, shorter_side=shorter_side, quality=quality)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        detail = f"{type(error).__name__}: {error}"
        if isinstance(source, Path):
            detail = detail.replace(str(source), source.name)
        else:
            detail = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the archive's member", detail)
        raise BadImageError("unreadable_image", detail) from error


def _prepare(image: Image.Image, *, shorter_side: int, quality: int) -> StoredImage:
    width, height = image.size
    _check_size(width, height)
    # of a TIFF Pillow gives the size as it will be
    turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED_ASIDE
    factor = min(1.0, shorter_side / min(width, height))
    # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; twice the target leaves the resampling its work
    image.draft(None, (round(2 * factor * width), round(2 * factor * height)))
    ImageOps.exif_transpose(image, in_place=True)
    if turned:
        width, height = height, width
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    stored = _to_rgb(image).resize(size, Image.Resampling.LANCZOS)
    stored.info = {}  # a comment or an XMP packet would be written along
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=quality)
    return StoredImage(buffer.getvalue(), *size, width, height)


def _check_size(width: int, height: int) -> None:
    short, long = min(width, height), max(width, height)
    if short < MIN_SIDE:
        raise BadImageError(
            "bad_image_size", f"{width}x{height} pixels: the shorter side is below {MIN_SIDE}"
        )
    if long > MAX_ASPECT * short:
        raise BadImageError("bad_image_size", f"{width}x{height} pixels: longer than {MAX_ASPECT:g} to 1")
    if width * height > MAX_PIXELS:
        raise BadImageError("bad_image_size", f"{width}x{height} pixels: more than {MAX_PIXELS} in all")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in RGB, on white where it is transparent."""
    if image.mode == "F":
        raise BadImageError("unreadable_image", "floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow itself would clip to white above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
