"""The pages of a PDF, drawn by PDFium."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from calib_data.document import READ_TEXT, Document
from calib_data.sources.entry import Entry
from console.errors import InputError, require_package

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

DPI = 150  # an A4 page has 2.2 million pixels, within the processor's 3.2 million


def pdf_entries(path: Path) -> list[Entry]:
    """All pages in order, each to be read; there are no answers."""
    names = [f"{path.name}/{number}" for number in range(1, page_count(path) + 1)]
    return [Entry(name, partial(_document, path, index, name)) for index, name in enumerate(names)]


def page_count(path: Path) -> int:
    """Count the pages. Raises InputError if the file is not a PDF that can be read."""
    require_package("pypdfium2", "data", f"{path}: reading PDF files")
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            return len(pdf)
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: cannot be read as a PDF ({error}), it may be damaged or encrypted") from error


def draw_page(path: Path, index: int) -> Image.Image:
    """Draw a page, counted from 0, as RGB. Raises InputError if that fails."""
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as pdf:
            image: Image.Image = pdf[index].render(scale=DPI / 72).to_pil()
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: page {index + 1} cannot be drawn ({error})") from error
    return image.convert("RGB")


def _document(path: Path, index: int, name: str) -> Document:
    return Document(partial(draw_page, path, index), READ_TEXT, None, name)
