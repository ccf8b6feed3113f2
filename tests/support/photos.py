"""Small photos whose content is known, written in any format."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


def two_colours(size: tuple[int, int] = (96, 64), mode: str = "RGB") -> Image.Image:
    """Return a picture that is red on the left and blue on the right, with a green square top left."""
    width, height = size
    image = Image.new("RGB", size, "red")
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), fill="blue")
    draw.rectangle((0, 0, width // 8, width // 8), fill="lime")
    return image.convert(mode)


def write_photo(path: Path, size: tuple[int, int] = (96, 64), *, mode: str = "RGB", **how: Any) -> Path:
    """Write `two_colours` to `path`; `how` goes to Pillow's save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    two_colours(size, mode).save(path, **how)
    return path
