"""The demo's pictures: objects, a sign and a textured background, drawn from an index, the same on every machine.

A scene is a 3×3 grid of cells with at most one thing in each: up to five objects and, mostly, one sign with a number.
So "where" has one right answer. Foreground, background and fine detail are all asked about (`demo.questions`), since
that is where token reducers differ.

Only `random.Random`'s guaranteed streams are drawn from, and glyphs are bitmaps of our own, so that no library's version
changes a scene.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Split = Literal["train", "held-out"]

SIZE = 192  # px, square
CELL = SIZE // 3
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (214, 38, 38),
    "orange": (244, 136, 28),
    "yellow": (248, 220, 48),
    "green": (44, 160, 66),
    "cyan": (64, 205, 220),
    "blue": (42, 84, 210),
    "purple": (132, 52, 170),
    "pink": (246, 136, 190),
}
BACKGROUNDS = {
    "white": (232, 232, 232),
    "grey": (136, 136, 136),
    "brown": (112, 76, 46),
    "black": (30, 30, 30),
}
PATTERNS = ("plain", "striped", "dotted", "mottled")
MAX_OBJECTS = 5
_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
GLYPH = 3  # px a bitmap's dot: a digit is 15×21 px
PITCH = 6 * GLYPH  # px from one digit to the next


@dataclass(frozen=True)
class Thing:
    """An object: what it is and where, in pixels."""

    shape: str
    colour: str
    cell: int  # 0…8, row by row
    x: int
    y: int
    half: int  # half of its extent
    angle: float  # radians


@dataclass(frozen=True)
class Sign:
    """A white board with one to three digits, centred at (x, y)."""

    number: str
    cell: int
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the board, right and bottom exclusive."""
        wide, high = PITCH * len(self.number) - GLYPH + 10, 7 * GLYPH + 10
        left, top = self.x - wide // 2, self.y - high // 2
        return left, top, left + wide, top + high


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows. `seed` moves only what no question asks about: tint, texture, noise."""

    things: tuple[Thing, ...]
    sign: Sign | None
    background: str
    pattern: str
    seed: int


def scene(index: int, split: Split) -> Scene:
    """The scene of that index; training and held-out scenes never overlap.

    A scene belongs to one of the two by a digest of its content, whatever index led to it.
    """
    rng = random.Random(f"{split}/{index}")
    while True:
        drawn = _draw_scene(rng)
        held_out = hashlib.blake2b(repr(drawn).encode(), digest_size=1).digest()[0] % 8 == 0
        if held_out == (split == "held-out"):
            return drawn


def _draw_scene(rng: random.Random) -> Scene:
    cells = list(range(9))
    rng.shuffle(cells)
    # Now and then one colour or shape prevails, so that counts above one are not rare.
    colours, shapes = list(COLOURS), list(SHAPES)
    main_colour = rng.choice(colours) if rng.random() < 0.35 else None
    main_shape = rng.choice(shapes) if rng.random() < 0.35 else None
    things: list[Thing] = []
    for _ in range(rng.randint(1, MAX_OBJECTS)):
        colour = main_colour if main_colour and rng.random() < 0.7 else rng.choice(colours)
        shape = main_shape if main_shape and rng.random() < 0.7 else rng.choice(shapes)
        half, cell = rng.randint(13, 20), cells.pop()
        room = CELL // 2 - math.ceil(1.3 * half)
        x, y = (CELL // 2 + CELL * part + rng.randint(-room, room) for part in (cell % 3, cell // 3))
        things.append(Thing(shape, colour, cell, x, y, half, round(rng.uniform(-0.3, 0.3), 3)))
    sign = None
    if rng.random() < 0.8:
        digits, cell = rng.randint(1, 3), cells.pop()
        number = str(rng.randrange(10 ** (digits - 1), 10**digits))
        room = CELL // 2 - (PITCH * len(number) + 10) // 2
        x, y = CELL // 2 + CELL * (cell % 3), CELL // 2 + CELL * (cell // 3)
        sign = Sign(number, cell, x + rng.randint(-room, room), y + rng.randint(-14, 14))
    return Scene(
        tuple(things), sign, rng.choice(list(BACKGROUNDS)), rng.choice(PATTERNS), seed=rng.getrandbits(32)
    )


def render(scene: Scene) -> Image.Image:
    """The scene's picture, RGB, 192×192 px."""
    rng = random.Random(scene.seed)
    picture = Image.fromarray(_background(scene, rng))
    for thing in scene.things:
        tint = tuple(max(0, min(255, c + rng.randint(-10, 10))) for c in COLOURS[thing.colour])
        over = 4  # drawn four times as large and averaged down: smooth edges
        reach = math.ceil(1.4 * thing.half)
        mask = Image.new("L", (2 * reach * over, 2 * reach * over))
        points = [((x - thing.x + reach) * over, (y - thing.y + reach) * over) for x, y in outline(thing)]
        ImageDraw.Draw(mask).polygon(points, fill=255)
        picture.paste(tint, (thing.x - reach, thing.y - reach), mask.reduce(over))
    if scene.sign:
        _draw_sign(picture, scene.sign)
    noise = np.frombuffer(rng.randbytes(SIZE * SIZE * 3), np.uint8).reshape(SIZE, SIZE, 3) % 13
    return Image.fromarray(np.clip(np.asarray(picture, np.int16) + noise - 6, 0, 255).astype(np.uint8))


def outline(thing: Thing) -> list[tuple[float, float]]:
    """The corners of an object's polygon, in pixels; all shapes of one `half` cover about the same area."""
    turns = 2 * math.pi
    if thing.shape == "circle":
        polar = [(1.0, turns * i / 48) for i in range(48)]
    elif thing.shape == "square":
        polar = [(1.27, turns * (i + 0.5) / 4) for i in range(4)]
    elif thing.shape == "triangle":
        polar = [(1.4, turns * (i / 3 - 0.25)) for i in range(3)]
    elif thing.shape == "star":
        polar = [((1.4, 0.6)[i % 2], turns * (i / 10 - 0.25)) for i in range(10)]
    else:  # a cross: each arm's two outer corners, then the corner between two arms
        arm, wide = 1.2, 0.42
        quarter = [(arm, -wide), (arm, wide), (wide, wide)]
        polar = [(math.hypot(x, y), math.atan2(y, x) + turns * i / 4) for i in range(4) for x, y in quarter]
    return [
        (
            thing.x + thing.half * r * math.cos(a + thing.angle),
            thing.y + thing.half * r * math.sin(a + thing.angle),
        )
        for r, a in polar
    ]


def _draw_sign(picture: Image.Image, sign: Sign) -> None:
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = sign.box
    draw.rectangle((left, top, right - 1, bottom - 1), fill=(250, 250, 244), outline=(60, 60, 60), width=2)
    for i, digit in enumerate(sign.number):
        for row, dots in enumerate(_DIGITS[int(digit)].split()):
            for column, dot in enumerate(dots):
                if dot == "1":
                    x, y = left + 5 + PITCH * i + GLYPH * column, top + 5 + GLYPH * row
                    draw.rectangle((x, y, x + GLYPH - 1, y + GLYPH - 1), fill=(20, 20, 20))


def _background(scene: Scene, rng: random.Random) -> npt.NDArray[np.uint8]:
    """The background, `[SIZE, SIZE, 3]` uint8: a base colour with a pattern a shade lighter or darker."""
    y, x = np.mgrid[:SIZE, :SIZE]
    shade = rng.randint(22, 34) * (1 if scene.background in ("black", "brown") else -1)
    if scene.pattern == "striped":
        angle, period = rng.uniform(0, math.pi), rng.randint(12, 22)
        across = x * math.cos(angle) + y * math.sin(angle)
        pattern = (across % period < period / 2).astype(np.int16)
    elif scene.pattern == "dotted":
        period = rng.randint(14, 20)
        dx, dy = (x + rng.randrange(period)) % period, (y + rng.randrange(period)) % period
        pattern = ((dx - period / 2) ** 2 + (dy - period / 2) ** 2 < (period / 4) ** 2).astype(np.int16)
    elif scene.pattern == "mottled":
        side = SIZE // 4
        blots = np.frombuffer(rng.randbytes(side * side), np.uint8).reshape(side, side) > 127
        pattern = blots.repeat(4, 0).repeat(4, 1).astype(np.int16)
    else:
        pattern = np.zeros((SIZE, SIZE), np.int16)
    tint = np.array([c + rng.randint(-8, 8) for c in BACKGROUNDS[scene.background]], np.int16)
    shown: npt.NDArray[np.uint8] = np.clip(tint + shade * pattern[..., None], 0, 255).astype(np.uint8)
    return shown
