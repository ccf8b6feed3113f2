"""Composing an image of the synthetic world: a place, and objects with known boxes, each in a column of its own.

There are two or three, and with bystanders up to eight.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageEnhance

from promptmeup.corpora import synthetic_looks as news
from promptmeup.corpora import synthetic_social_looks as social
from promptmeup.corpora.synthetic_looks import Area
from promptmeup.corpora.synthetic_names import Domain
from promptmeup.corpora.synthetic_world import Facts, Kind

OVERSAMPLING = 2  # drawn at twice the size and reduced, for smooth edges
JPEG_QUALITY = 90


@dataclass(frozen=True)
class _Shape:
    draw: Callable[[ImageDraw.ImageDraw, int, Area], None]
    share: float
    """of the image's height"""
    aspect: float
    """width over height"""
    top: tuple[float, float]
    """where the top lies in the room that is left: 0 is the image's top, 1 stands on its bottom"""


@dataclass(frozen=True)
class _Style:
    """How a domain's pictures are taken."""

    place: Callable[..., None]
    shapes: dict[Kind, _Shape]
    grain: float
    """share of noise in the finished picture"""


_STYLES: dict[Domain, _Style] = {
    "news": _Style(
        place=news.draw_place,
        shapes={
            "person": _Shape(news.draw_person, share=0.7, aspect=0.5, top=(0.75, 1.0)),
            "organisation": _Shape(news.draw_organisation, share=0.4, aspect=1.0, top=(0.05, 0.35)),
            "event": _Shape(news.draw_event, share=0.45, aspect=1.0, top=(0.7, 1.0)),
        },
        grain=0.0,
    ),
    "social": _Style(
        place=social.draw_place,
        shapes={
            "person": _Shape(social.draw_person, share=0.55, aspect=0.7, top=(0.3, 0.9)),
            "organisation": _Shape(social.draw_organisation, share=0.36, aspect=1.0, top=(0.65, 0.95)),
            "event": _Shape(social.draw_event, share=0.45, aspect=1.15, top=(0.1, 0.5)),
        },
        grain=0.12,
    ),
}


@dataclass(frozen=True)
class Drawn:
    """An object of the scene; `box` is in pixels of the image, `number` that of the entity."""

    kind: Kind
    number: int
    box: Area


def draw_scene(
    facts: Facts, rng: random.Random, *, size: tuple[int, int], domain: Domain = "news"
) -> tuple[bytes, tuple[Drawn, ...]]:
    """Return the JPEG of (width, height) pixels and its objects, at random places, sizes and brightness."""
    style = _STYLES[domain]
    width, height = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    style.place(draw, facts.place, rng, width=width, height=height)
    things = [entity for entity in facts.shown if entity.kind != "place"]
    rng.shuffle(things)
    objects = []
    column = width / len(things)
    for position, (kind, number) in enumerate(things):
        shape = style.shapes[kind]
        high = height * shape.share * rng.uniform(0.85, 1.15)
        wide = min(high * shape.aspect, column * 0.95)
        left = column * position + rng.uniform(0.1, 0.9) * (column - wide)
        top = rng.uniform(*shape.top) * (height - high)
        area = (left, top, left + wide, top + high)
        shape.draw(draw, number, area)
        objects.append(Drawn(kind, number, _pixels(area)))
    small = image.reduce(OVERSAMPLING)
    small = ImageEnhance.Brightness(small).enhance(rng.uniform(0.85, 1.15))
    if style.grain:
        noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
        small = Image.blend(small, noise.convert("RGB"), style.grain)
    file = BytesIO()
    small.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue(), tuple(objects)


def _pixels(area: Area) -> Area:
    x0, y0, x1, y1 = (round(value / OVERSAMPLING, 2) for value in area)
    return x0, y0, x1, y1
