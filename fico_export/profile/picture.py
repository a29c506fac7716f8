"""The image that a profile asks about where none is given: drawn by code, the same on every machine."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

SIZE = (640, 480)
PROMPT = "What is in this picture?"


def drawn() -> bytes:
    """A PNG file: shapes on a gradient, so that methods which look at content have something to choose by."""
    width, height = SIZE
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    channels = [across + 0 * down, down + 0 * across, (across + down) / 2]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(12):
        x, y, side = 97 * i % (width - 120), 61 * i % (height - 120), 40 + 7 * i % 80
        colour = (37 * i % 256, 91 * i % 256, 173 * i % 256)
        (draw.ellipse if i % 2 else draw.rectangle)((x, y, x + side, y + side), fill=colour, outline="white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
