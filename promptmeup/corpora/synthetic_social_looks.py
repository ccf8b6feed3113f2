"""The looks of the same entities in the second domain: another palette, outlines instead of fills, other shapes.

A number is the same entity as in synthetic_looks.py, and no part of its look is. A place is a dark wallpaper with
a light frame, a person an avatar with a hat over a card, an organisation a round badge with a sign, an event
an outlined sight.
"""

import random

from PIL.ImageDraw import ImageDraw

from promptmeup.corpora.synthetic_looks import Area, Colour, look, part, points, stroke

# of another hue than the colour of the same number in the news; they glow on the dark grounds
COLOURS: tuple[Colour, ...] = (
    (60, 215, 235),  # cyan
    (255, 165, 50),  # amber
    (175, 115, 255),  # violet
    (255, 95, 175),  # pink
    (185, 240, 60),  # lime
    (75, 225, 140),  # mint
    (255, 80, 70),  # coral
    (85, 145, 255),  # sky
)
HATS: tuple[Colour, ...] = (
    (240, 240, 200),
    (150, 60, 60),
    (70, 110, 70),
    (90, 90, 190),
    (190, 150, 210),
)
FACES: tuple[Colour, ...] = ((170, 205, 150), (190, 190, 205), (225, 225, 120), (115, 160, 175))
# (ground, the lines on it)
WALLPAPERS: tuple[tuple[Colour, Colour], ...] = (
    ((100, 20, 30), (150, 70, 70)),
    ((15, 30, 110), (60, 85, 165)),
    ((10, 75, 35), (55, 130, 80)),
    ((75, 20, 105), (125, 75, 160)),
    ((95, 65, 5), (150, 120, 55)),
    ((10, 10, 14), (60, 60, 68)),
    ((5, 85, 100), (50, 140, 150)),
    ((105, 105, 112), (55, 55, 62)),
)
FRAME, LIGHT, DARK = (232, 228, 218), (245, 245, 250), (24, 22, 30)
TEXTURES = ("plain", "bars", "rings", "zigzag")
CARDS = ("disc", "ladder", "fence", "saltire")
SIGNS = ("bars", "chevron", "hourglass", "stairs", "moon", "dots")
SIGHTS = ("fireworks", "kite", "arch", "pennants", "screen", "cone")


def draw_place(draw: ImageDraw, number: int, rng: random.Random, *, width: int, height: int) -> None:
    """Fill the picture with the framed wallpaper of a place; `rng` moves its lines a little."""
    paper, texture = look(number, WALLPAPERS, TEXTURES)
    ground, line = WALLPAPERS[paper]
    draw.rectangle((0, 0, width, height), fill=ground)
    step, wide = width / 5, max(1, width // 40)
    shift = rng.uniform(-0.5, 0.0) * step
    for n in range(7):
        left = shift + n * step
        if TEXTURES[texture] == "bars":
            draw.rectangle((left, 0, left + 0.4 * step, height), fill=line)
        elif TEXTURES[texture] == "rings":
            for top in (0.05 * height, 0.5 * height):
                draw.ellipse((left, top, left + 0.85 * step, top + 0.4 * height), outline=line, width=wide)
        elif TEXTURES[texture] == "zigzag":
            for top in (0.1 * height, 0.4 * height, 0.7 * height):
                corners = (
                    (left, top + 0.2 * height),
                    (left + step / 2, top),
                    (left + step, top + 0.2 * height),
                )
                draw.line(corners, fill=line, width=2 * wide)
    draw.rectangle((0, 0, width, height), outline=FRAME, width=max(1, round(height * 0.05)))


def draw_person(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw a square face under a hat, and below it a card with one of four drawings in the person's colour."""
    colour, card = look(number, COLOURS, CARDS)
    fill, name = COLOURS[colour], CARDS[card]
    hat, face = HATS[number % len(HATS)], FACES[number % len(FACES)]
    body = part(area, 0, 0.36, 1, 1)
    draw.rounded_rectangle(body, stroke(area, 0.15), fill=DARK, outline=fill, width=stroke(area, 0.09))
    inner = part(body, 0.18, 0.14, 0.82, 0.86)
    if name == "disc":
        draw.ellipse(inner, fill=fill)
    elif name == "ladder":
        for y in (0.0, 0.4, 0.8):
            draw.rectangle(part(inner, 0, y, 1, y + 0.2), fill=fill)
    elif name == "fence":
        for x in (0.0, 0.39, 0.78):
            draw.rectangle(part(inner, x, 0, x + 0.22, 1), fill=fill)
    else:
        for ends in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
            draw.line(points(inner, *ends), fill=fill, width=stroke(inner, 0.25))
    draw.rectangle(part(area, 0.24, 0.1, 0.76, 0.38), fill=face)
    draw.rectangle(part(area, 0.12, 0.08, 0.88, 0.15), fill=hat)
    draw.rectangle(part(area, 0.3, 0, 0.7, 0.1), fill=hat)


def draw_organisation(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw a round badge, dark or light, with a coloured sign."""
    colour, sign = look(number, COLOURS, SIGNS)
    fill, name = COLOURS[colour], SIGNS[sign]
    ground = LIGHT if number % 2 else DARK
    draw.ellipse(area, fill=ground, outline=fill, width=stroke(area, 0.07))
    inner = part(area, 0.22, 0.22, 0.78, 0.78)
    if name == "bars":
        draw.rectangle(part(inner, 0.05, 0, 0.38, 1), fill=fill)
        draw.rectangle(part(inner, 0.62, 0, 0.95, 1), fill=fill)
    elif name == "chevron":
        draw.polygon(points(inner, (0, 0.5), (0.5, 0), (1, 0.5), (1, 1), (0.5, 0.5), (0, 1)), fill=fill)
    elif name == "hourglass":
        draw.polygon(points(inner, (0, 0), (1, 0), (0, 1), (1, 1)), fill=fill)
    elif name == "stairs":
        for n in range(3):
            draw.rectangle(part(inner, 0, n / 3, (n + 1) / 3, (n + 1) / 3), fill=fill)
    elif name == "moon":
        draw.ellipse(inner, fill=fill)
        draw.ellipse(part(inner, 0.35, -0.05, 1.15, 0.75), fill=ground)
    else:
        for x, y in ((0, 0), (0.58, 0), (0, 0.58), (0.58, 0.58)):
            draw.ellipse(part(inner, x, y, x + 0.42, y + 0.42), fill=fill)


def draw_event(draw: ImageDraw, number: int, area: Area) -> None:
    """Draw the sight that stands for an event."""
    colour, sight = look(number, COLOURS, SIGHTS)
    fill, name = COLOURS[colour], SIGHTS[sight]
    wide = stroke(area, 0.1)
    if name == "fireworks":
        for start, end in (
            ((0.5, 0), (0.5, 1)),
            ((0, 0.5), (1, 0.5)),
            ((0.12, 0.12), (0.88, 0.88)),
            ((0.12, 0.88), (0.88, 0.12)),
        ):
            draw.line(points(area, start, end), fill=fill, width=wide)
        draw.ellipse(part(area, 0.38, 0.38, 0.62, 0.62), fill=LIGHT)
    elif name == "kite":
        draw.polygon(points(area, (0.5, 0), (0.95, 0.35), (0.5, 1), (0.05, 0.35)), outline=fill, width=wide)
        draw.line(points(area, (0.5, 0), (0.5, 1)), fill=fill, width=wide)
        draw.line(points(area, (0.05, 0.35), (0.95, 0.35)), fill=LIGHT, width=wide // 2 + 1)
    elif name == "arch":
        draw.arc(part(area, 0, 0, 1, 1.1), 180, 360, fill=fill, width=2 * wide)
        draw.rectangle(part(area, 0, 0.55, 0.2, 1), fill=fill)
        draw.rectangle(part(area, 0.8, 0.55, 1, 1), fill=fill)
    elif name == "pennants":
        draw.rectangle(part(area, 0, 0, 1, 0.1), fill=LIGHT)
        for x in (0.0, 1 / 3, 2 / 3):
            draw.polygon(points(area, (x, 0.1), (x + 1 / 3, 0.1), (x + 1 / 6, 0.9)), fill=fill)
    elif name == "screen":
        draw.rectangle(part(area, 0, 0, 1, 0.65), fill=DARK, outline=fill, width=wide)
        draw.polygon(points(area, (0.35, 0.15), (0.35, 0.5), (0.7, 0.33)), fill=LIGHT)
        draw.rectangle(part(area, 0.15, 0.65, 0.25, 1), fill=fill)
        draw.rectangle(part(area, 0.75, 0.65, 0.85, 1), fill=fill)
    else:
        draw.polygon(points(area, (0.15, 0.4), (0.85, 0.4), (0.5, 1)), fill=LIGHT)
        draw.ellipse(part(area, 0.1, 0, 0.9, 0.55), fill=fill)
