"""The looks of the synthetic world's entities in the news, told apart by colour, shape and pattern.

A place is the background, a person a figure with hair and a patterned torso, an organisation a banner with
an emblem, an event a large prop. Looks are numbered; the limits below say how many there are of each kind.
Every function draws into an area given in pixels, so a look has the same proportions at every size.
"""

import random
from collections.abc import Sequence

from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]
Area = tuple[float, float, float, float]
"""x0, y0, x1, y1"""

COLOURS: tuple[Colour, ...] = (
    (214, 39, 40),  # red
    (31, 84, 214),  # blue
    (250, 205, 30),  # yellow
    (30, 150, 60),  # green
    (140, 50, 180),  # purple
    (250, 130, 20),  # orange
    (20, 180, 190),  # teal
    (245, 120, 185),  # pink
)
HAIR: tuple[Colour, ...] = ((25, 20, 20), (120, 70, 30), (235, 205, 120), (175, 60, 25), (200, 200, 200))
SKIN: tuple[Colour, ...] = ((255, 219, 190), (224, 172, 125), (150, 98, 62), (95, 60, 40))
# (above, below) the horizon: paler than the objects, which stand out against them
GROUNDS: tuple[tuple[Colour, Colour], ...] = (
    ((190, 222, 245), (205, 190, 150)),
    ((250, 220, 190), (150, 130, 120)),
    ((215, 215, 220), (120, 125, 135)),
    ((205, 235, 205), (110, 140, 105)),
    ((225, 205, 235), (105, 100, 130)),
    ((60, 70, 105), (95, 90, 100)),
    ((245, 235, 205), (190, 150, 120)),
    ((150, 190, 195), (215, 225, 220)),
)
WHITE, BLACK = (250, 250, 250), (20, 20, 25)
PATTERNS = ("plain", "across", "down", "checked")
SKYLINES = ("flat", "towers", "hills", "peaks")
EMBLEMS = ("circle", "square", "triangle", "diamond", "cross", "ring")
PROPS = ("tent", "trophy", "balloons", "wheel", "flag", "tree")

MAX_PEOPLE = len(COLOURS) * len(PATTERNS)
MAX_ORGANISATIONS = len(COLOURS) * len(EMBLEMS)
MAX_PLACES = len(GROUNDS) * len(SKYLINES)
MAX_EVENTS = len(COLOURS) * len(PROPS)


def part(area: Area, x0: float, y0: float, x1: float, y1: float) -> Area:
    """Return the part of `area` between the given fractions of its width and height."""
    left, top, right, bottom = area
    wide, high = right - left, bottom - top
    return left + x0 * wide, top + y0 * high, left + x1 * wide, top + y1 * high


def points(area: Area, *fractions: tuple[float, float]) -> list[tuple[float, float]]:
    return [part(area, x, y, x, y)[:2] for x, y in fractions]


def stroke(area: Area, fraction: float) -> int:
    """Return a line's width in pixels, as a fraction of the area's."""
    return max(1, round((area[2] - area[0]) * fraction))


def look(number: int, first: Sequence[object], second: Sequence[object]) -> tuple[int, int]:
    """Return a pair of positions, different for each number below the product; neighbours differ in both."""
    column, row = number % len(first), number // len(first)
    return column, (column + row) % len(second)


def draw_place(draw: ImageDraw, number: int, rng: random.Random, *, width: int, height: int) -> None:
    """Fill the picture with the background of a place; `rng` moves its horizon and skyline a little."""
    ground, skyline = look(number, GROUNDS, SKYLINES)
    above, below = GROUNDS[ground]
    horizon = height * rng.uniform(0.55, 0.7)
    draw.rectangle((0, 0, width, height), fill=above)
    draw.rectangle((0, horizon, width, height), fill=below)
    shift, step = rng.uniform(-0.1, 0.0) * width, width / 5
    for n in range(6):
        left, right = shift + n * step, shift + (n + 1) * step
        if SKYLINES[skyline] == "towers":
            top = horizon * (0.25 if n % 2 else 0.5)
            draw.rectangle((left, top, right - 0.15 * step, horizon), fill=below)
        elif SKYLINES[skyline] == "hills":
            draw.pieslice((left, horizon - step / 2, right, horizon + step / 2), 180, 360, fill=below)
        elif SKYLINES[skyline] == "peaks":
            draw.polygon(((left, horizon), ((left + right) / 2, horizon * 0.4), (right, horizon)), fill=below)


def draw_person(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw a head with hair over a patterned torso that reaches the area's bottom."""
    colour, pattern = look(number, COLOURS, PATTERNS)
    hair, skin = HAIR[number % len(HAIR)], SKIN[number % len(SKIN)]
    torso = part(area, 0, 0.4, 1, 1)
    draw.rectangle(torso, fill=COLOURS[colour])
    other = WHITE if PATTERNS[pattern] != "checked" else BLACK
    for n in range(1, 6, 2):
        if PATTERNS[pattern] in ("across", "checked"):
            draw.rectangle(part(torso, 0, n / 6, 1, (n + 1) / 6), fill=other)
        if PATTERNS[pattern] in ("down", "checked"):
            draw.rectangle(part(torso, n / 6, 0, (n + 1) / 6, 1), fill=other)
    draw.ellipse(part(area, 0.15, 0, 0.85, 0.42), fill=hair)
    draw.ellipse(part(area, 0.25, 0.12, 0.75, 0.42), fill=skin)


def draw_organisation(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw a framed banner, black or white, with a coloured emblem."""
    colour, emblem = look(number, COLOURS, EMBLEMS)
    fill, name = COLOURS[colour], EMBLEMS[emblem]
    draw.rectangle(area, fill=BLACK if number % 2 else WHITE, outline=fill, width=stroke(area, 0.05))
    inner = part(area, 0.2, 0.2, 0.8, 0.8)
    if name == "circle":
        draw.ellipse(inner, fill=fill)
    elif name == "square":
        draw.rectangle(inner, fill=fill)
    elif name == "triangle":
        draw.polygon(points(inner, (0, 1), (0.5, 0), (1, 1)), fill=fill)
    elif name == "diamond":
        draw.polygon(points(inner, (0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)), fill=fill)
    elif name == "cross":
        draw.rectangle(part(inner, 0.35, 0, 0.65, 1), fill=fill)
        draw.rectangle(part(inner, 0, 0.35, 1, 0.65), fill=fill)
    else:
        draw.ellipse(inner, outline=fill, width=stroke(inner, 0.2))


def draw_event(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw the prop that stands for an event."""
    colour, prop = look(number, COLOURS, PROPS)
    fill, name = COLOURS[colour], PROPS[prop]
    if name == "tent":
        draw.polygon(points(area, (0, 1), (0.5, 0), (1, 1)), fill=fill)
        draw.polygon(points(area, (0.38, 1), (0.5, 0.4), (0.62, 1)), fill=BLACK)
    elif name == "trophy":
        draw.pieslice(part(area, 0.1, -0.6, 0.9, 0.6), 0, 180, fill=fill)
        draw.rectangle(part(area, 0.42, 0.5, 0.58, 0.85), fill=fill)
        draw.rectangle(part(area, 0.15, 0.85, 0.85, 1), fill=BLACK)
    elif name == "balloons":
        for x in (0.0, 0.33, 0.66):
            draw.line(points(area, (x + 0.17, 0.4), (0.5, 1)), fill=BLACK, width=stroke(area, 0.03))
            draw.ellipse(
                part(area, x, 0.2 if x == 0.33 else 0, x + 0.34, 0.65 if x == 0.33 else 0.45), fill=fill
            )
    elif name == "wheel":
        draw.ellipse(area, outline=fill, width=stroke(area, 0.1))
        for start, end in (((0.5, 0), (0.5, 1)), ((0, 0.5), (1, 0.5))):
            draw.line(points(area, start, end), fill=fill, width=stroke(area, 0.06))
    elif name == "flag":
        draw.rectangle(part(area, 0, 0, 0.1, 1), fill=BLACK)
        draw.rectangle(part(area, 0.1, 0, 1, 0.55), fill=fill)
        draw.rectangle(part(area, 0.1, 0.2, 1, 0.36), fill=WHITE)
    else:
        draw.rectangle(part(area, 0.42, 0.5, 0.58, 1), fill=(95, 60, 40))
        draw.ellipse(part(area, 0.0, 0.0, 1.0, 0.7), fill=fill)
