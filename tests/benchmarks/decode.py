"""JPEG to a square: torchvision, which we use, against Pillow and simplejpeg, also decoded at reduced scale.

A JPEG can be decoded at half or a quarter of its size for less. `draft` and `scaled` do so where both sides stay at
least as long as the square's. One process, one thread, whole photos.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from tests.benchmarks import harness
from tests.benchmarks.loader import _photo
from tests.benchmarks.peers.peer import require

PHOTOS = 200
REPEATS = 7
SHAPES = ((384, 288), (1024, 768))
"""as packed with shorter_side=288, and as photos come"""
SIZES = (224, 128)


def _resized(image_CHW: Tensor, size: int) -> Tensor:
    resized: Tensor = TF.resize(image_CHW, [size, size], TF.InterpolationMode.BICUBIC, antialias=True)
    return resized


def by_torchvision(jpeg: bytes, size: int) -> Tensor:
    return _resized(
        decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB), size
    )


def by_pillow(jpeg: bytes, size: int, *, draft: bool) -> Tensor:
    with Image.open(io.BytesIO(jpeg)) as image:
        if draft:
            image.draft("RGB", (size, size))
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def by_simplejpeg(jpeg: bytes, size: int, *, scaled: bool) -> Tensor:
    scale = {"min_height": size, "min_width": size, "min_factor": 1} if scaled else {}
    pixels = require("simplejpeg", "simplejpeg").decode_jpeg(jpeg, colorspace="RGB", **scale)
    return _resized(torch.from_numpy(pixels).permute(2, 0, 1), size)


DECODERS: dict[str, Callable[[bytes, int], Tensor]] = {
    "torchvision": by_torchvision,
    "Pillow": partial(by_pillow, draft=False),
    "Pillow, draft": partial(by_pillow, draft=True),
    "simplejpeg": partial(by_simplejpeg, scaled=False),
    "simplejpeg, scaled": partial(by_simplejpeg, scaled=True),
}


def photos(shape: tuple[int, int]) -> list[bytes]:
    """Return JPEG files of `shape` (width, height)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PHOTOS // 10):
        buffer = io.BytesIO()
        Image.fromarray(_photo(rng)).resize(shape).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found * 10


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time every decoder on every size of photo and of square."""
    torch.set_num_threads(1)
    rows: list[harness.Row] = []
    summary = {}
    for shape in SHAPES:
        files = photos(shape)
        for size in SIZES:

            def run(
                decode: Callable[[bytes, int], Tensor], files: list[bytes] = files, size: int = size
            ) -> None:
                for jpeg in files:
                    assert decode(jpeg, size).shape == (3, size, size)

            timed = harness.interleave(
                {name: lambda decode=decode: run(decode) for name, decode in DECODERS.items()},
                repeats=REPEATS,
            )
            spreads = {name: harness.spread(seconds) for name, seconds in timed.items()}
            for name, time in spreads.items():
                rows.append(
                    {
                        "photo": f"{shape[0]} x {shape[1]}",
                        "square": size,
                        "decoder": name,
                        "photos/s": PHOTOS / time.median,
                        "p25": PHOTOS / time.p75,
                        "p75": PHOTOS / time.p25,
                    }
                )
            best = min(time.median for time in spreads.values())
            summary[f"torchvision_vs_best_{shape[1]}_{size}"] = best / spreads["torchvision"].median
    return rows, summary


if __name__ == "__main__":
    harness.run("decode", measure)
