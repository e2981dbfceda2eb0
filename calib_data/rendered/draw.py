"""Draw rows of text on a page with a box for every character, and degrade the picture like a scan."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from calib_data.rendered import fonts

if TYPE_CHECKING:
    from random import Random

    from calib_data.rendered.content import Row


@dataclass(frozen=True)
class CharBox:
    """A printed character and its ink box in pixels of the finished picture."""

    char: str
    left: float
    top: float
    right: float
    bottom: float
    line: float
    """Height of the row's middle at this character, the same for a comma and a capital."""


@dataclass(frozen=True)
class Style:
    """How a page is set and degraded."""

    font: str
    """A name from `fonts`."""
    size: int
    """Of the font, in pixels."""
    margin: int
    """Left and right, in pixels."""
    pitch: float
    """Between baselines, in pixels."""
    ink: int
    """Grey level of the text, 0 to 255."""
    paper: int
    """Grey level of the page."""
    angle: float
    """Degrees, counter-clockwise."""
    noise: float
    """Standard deviation in grey levels."""
    jpeg: int | None
    """Quality, 1 to 95; None for no compression."""


def width_of(text: str, style: Style, size: int) -> float:
    """Measure a text in pixels at a font size."""
    return sum(fonts.load(font, size).getlength(run) for run, font in fonts.runs(text, style.font))


def draw(rows: list[Row], style: Style, width: int, height: int, rng: Random) -> tuple[Image.Image, list[CharBox]]:
    """Draw rows onto a page of width x height; a row that is too wide is set smaller."""
    page = Image.new("L", (width, height), style.paper)
    pen = ImageDraw.Draw(page)
    boxes: list[CharBox] = []
    free = height - style.pitch * len(rows)
    top = rng.uniform(0.15, 0.85) * max(free, 0.0)
    for number, row in enumerate(rows):
        baseline = top + style.pitch * number + style.pitch / 2 + style.size * 0.36
        available = width - 2 * style.margin
        size = style.size
        while size > 9 and width_of(row.text, style, size) > available:
            size -= 1
        for left, text in _places(row, style, size, available):
            boxes += _write(pen, text, style.margin + left, round(baseline), style, size)
    return _degrade(page, boxes, style, rng)


def _places(row: Row, style: Style, size: int, available: float) -> list[tuple[float, str]]:
    """Place the cells of a row: left edge, from the margin, and text of each."""
    if row.setting != "spread" or len(row.cells) == 1:
        slack = max(0.0, available - width_of(row.text, style, size))
        return [(slack / 2 if row.setting == "center" else 0.0, row.text)]
    widths = [width_of(cell, style, size) for cell in row.cells]
    gap = (available - sum(widths)) / (len(widths) - 1)
    lefts = [sum(widths[:i]) + gap * i for i in range(len(widths))]
    return list(zip(lefts, row.cells, strict=True))


def _write(pen: ImageDraw.ImageDraw, text: str, x: float, y: int, style: Style, size: int) -> list[CharBox]:
    boxes = []
    for run, font in fonts.runs(text, style.font):
        pen.text((x, y), run, fill=style.ink, font=fonts.load(font, size), anchor="ls")
        for char in run:
            advance, left, top, right, bottom = fonts.ink(font, size, char)
            if char != " ":
                boxes.append(CharBox(char, x + left, y + top, x + right, y + bottom, y - 0.36 * size))
            x += advance
    return boxes


def _degrade(page: Image.Image, boxes: list[CharBox], style: Style, rng: Random) -> tuple[Image.Image, list[CharBox]]:
    """Rotate, add noise, compress."""
    if style.angle:
        boxes = [_rotated(box, style.angle, page.size) for box in boxes]
        page = page.rotate(style.angle, Image.Resampling.BILINEAR, fillcolor=style.paper)
    if style.noise:
        grain = np.random.default_rng(rng.getrandbits(64)).standard_normal((page.height, page.width), dtype=np.float32)
        pixels = np.asarray(page, dtype=np.float32) + style.noise * grain
        page = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if style.jpeg is not None:
        buffer = io.BytesIO()
        page.save(buffer, "JPEG", quality=style.jpeg)
        page = Image.open(buffer)
    return page.convert("RGB"), boxes


def _rotated(box: CharBox, degrees: float, size: tuple[int, int]) -> CharBox:
    """The box of the same extent around the centre's new place: at a degree or two its corners hardly move."""
    angle = math.radians(degrees)
    half_width, half_height = (box.right - box.left) / 2, (box.bottom - box.top) / 2
    x, y = box.left + half_width - size[0] / 2, box.top + half_height - size[1] / 2
    # Image rows grow downwards, so a counter-clockwise turn takes y towards -x.
    line = -x * math.sin(angle) + (box.line - size[1] / 2) * math.cos(angle) + size[1] / 2
    new_x = x * math.cos(angle) + y * math.sin(angle) + size[0] / 2
    new_y = -x * math.sin(angle) + y * math.cos(angle) + size[1] / 2
    return CharBox(box.char, new_x - half_width, new_y - half_height, new_x + half_width, new_y + half_height, line)
