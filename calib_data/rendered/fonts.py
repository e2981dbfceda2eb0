"""Fonts for rendered documents, taken from installed packages; one family is held out from training."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path

from PIL import ImageFont

from console.errors import require_package

Font = ImageFont.FreeTypeFont

# name -> (package, file inside it); Pillow's own scalable font needs no package.
_FILES = {
    "sans-cjk": ("cvttf_NotoSansCJK_Regular", "NotoSansCJKtc-Regular.otf"),
    "sans-cjk-bold": ("cvttf_NotoSansCJK_Bold", "NotoSansCJKtc-Bold.otf"),
    "serif": ("font_source_serif_pro", "files/SourceSerifPro-Regular.ttf"),
    "held-out": ("font_lato", "files/Lato-Regular.ttf"),
}
TRAINING_FONTS = ("sans-cjk", "sans-cjk-bold", "serif", "pillow")
HELD_OUT_FONT = "held-out"
_CJK_FONTS = ("sans-cjk", "sans-cjk-bold")


@cache
def load(name: str, size: int) -> Font:
    """Load a font at a size in pixels. Raises InputError if its package is not installed."""
    if name == "pillow":
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    package, file = _FILES[name]
    require_package(package, "render", "drawing documents")
    folder = import_module(package).__file__
    assert folder is not None
    return ImageFont.truetype(Path(folder).parent / file, size, layout_engine=ImageFont.Layout.BASIC)


def covers(name: str, char: str) -> bool:
    """Whether a font draws this character itself: Hangul and the won sign come from a CJK font."""
    return char < "\u2000" or name in _CJK_FONTS


def runs(text: str, name: str) -> list[tuple[str, str]]:
    """Split text into (run, font name); what the font lacks is drawn in the regular CJK font."""
    parts: list[tuple[str, str]] = []
    for char in text:
        font = name if covers(name, char) else "sans-cjk"
        if parts and parts[-1][1] == font:
            parts[-1] = (parts[-1][0] + char, font)
        else:
            parts.append((char, font))
    return parts


@lru_cache(maxsize=20000)
def ink(name: str, size: int, char: str) -> tuple[float, float, float, float, float]:
    """Advance and ink box (left, top, right, bottom; relative to the baseline's start) of one character, in pixels."""
    font = load(name, size)
    left, top, right, bottom = font.getbbox(char, anchor="ls")
    return font.getlength(char), left, top, right, bottom
