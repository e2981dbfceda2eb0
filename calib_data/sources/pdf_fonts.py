"""Say that a page may lack text: fonts that a PDF does not hold are the system's, which may have none for Korean."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from console.progress import say_once

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHARSETS = {
    128: "Japanese",
    129: "Korean",
    134: "simplified Chinese",
    136: "traditional Chinese",
}  # as Windows has them


@contextmanager
def missing_fonts_said(name: str, place: str) -> Iterator[None]:
    """Say, once a file, for which scripts PDFium finds no font while a page is opened and drawn.

    name: of the file. place: of the page. PDFium leaves such text out, and draws Latin letters in another font.
    """
    missing = _missing_charsets()
    missing.clear()
    yield
    scripts = tuple(script for charset, script in _CHARSETS.items() if charset in missing)
    if scripts:
        fonts = " and ".join(scripts)
        line = f"neither the PDF nor this system has a {fonts} font, so text may be missing; install one"
        say_once(f"{place}: {line}", about=(name, scripts))


@cache
def _missing_charsets() -> set[int]:
    """Charsets for which PDFium has asked the system for a font in vain, from the first call on."""
    from pypdfium2 import PdfSysfontBase

    missing: set[int] = set()

    class Watched(PdfSysfontBase):  # type: ignore[misc]
        def MapFont(self, *arguments: Any) -> Any:  # noqa: N802, ANN401 - PDFium's name and types
            font = super().MapFont(*arguments)
            if not font:
                missing.add(arguments[3])
            return font

    Watched().setup()
    return missing
