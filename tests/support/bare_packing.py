"""Decode, turn upright, resize and encode every photo of a folder, and keep nothing: no packer can be faster.

A program of its own, like the packer it is compared with: a process that has grown large already takes memory faster.
"""

import io
import sys
from pathlib import Path

from PIL import Image, ImageOps


def main(folder: str, side: str, quality: str) -> None:
    for path in sorted(Path(folder).glob("*.jpg")):
        with Image.open(path) as image:
            factor = min(1.0, int(side) / min(image.size))
            size = (round(factor * image.width), round(factor * image.height))
            image.draft(None, (2 * size[0], 2 * size[1]))
            small = ImageOps.exif_transpose(image).convert("RGB").resize(size, Image.Resampling.LANCZOS)
            small.save(io.BytesIO(), "JPEG", quality=int(quality))


if __name__ == "__main__":
    main(*sys.argv[1:])
