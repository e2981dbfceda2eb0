"""What graphs and modules are given: tokens in calls of several sizes, and a small page."""

from __future__ import annotations

from PIL import Image, ImageDraw

TOKENS = 150  # more than two windows of the bundled reader; the released model's window is longer
DRAFTED = 4  # tokens in one call after the prompt, as when drafts are checked
STEPS = 6  # single tokens after that
CALLS = [
    (0, TOKENS - STEPS - DRAFTED),
    (TOKENS - STEPS - DRAFTED, TOKENS - STEPS),
    *((start, start + 1) for start in range(TOKENS - STEPS, TOKENS)),
]
"""First token of each call, and the token after its last."""

_PAGE = (140, 168)  # pixels: 12 x 10 patches, whose windows have four sizes


def page() -> Image.Image:
    """Draw a small page of text: on noise a trained vision encoder magnifies every rounding."""
    image = Image.new("L", _PAGE, 255)
    lines = (f"{chr(65 + line)} {2**line * 37 % 10_000:04d} - {line * 29 % 100:02d}" for line in range(12))
    ImageDraw.Draw(image).multiline_text((8, 6), "\n".join(lines), fill=0)
    return image
