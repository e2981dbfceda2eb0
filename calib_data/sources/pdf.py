"""The pages of a PDF, drawn by PDFium as a viewer shows them on screen."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from calib_data.document import READ_TEXT, Document
from calib_data.sources.pdf_fonts import missing_fonts_said
from console.errors import InputError, require_package
from console.files import refuse_special
from console.progress import say_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pypdfium2 import PdfDocument, PdfPage

DPI = 150
"""Resolution of a page: A4 has 2.2 million pixels."""
MAX_PIXELS = 3_211_264
"""Most pixels of a page, as many as the model sees: 16384 patches of 14 x 14. Larger pages are drawn smaller."""

_DECODED_WHOLE = {"DCTDecode", "JPXDecode"}  # PDFium reads images of other filters row by row
_END = b"%%EOF"
_TAIL = 65536  # bytes in which a file must say its end; some servers append text to what they send


def pdf_documents(path: Path) -> list[Callable[[], Document]]:
    """All pages in order, each to be read; there are no answers. Raises InputError as `page_count` does."""
    say_attached(path)
    names = [f"{path.name}/{number}" for number in range(1, page_count(path) + 1)]
    return [partial(_document, path, index, name) for index, name in enumerate(names)]


def page_count(path: Path) -> int:
    """Count the pages. Raises InputError if the file is not a PDF that can be read."""
    with _opened(path) as pdf:
        return len(pdf)


def say_attached(path: Path) -> None:
    """Say which PDFs are attached to a PDF, to whoever has the file. Raises InputError as `page_count` does."""
    with _opened(path) as pdf:
        names = [pdf.get_attachment(number).get_name() for number in range(pdf.count_attachments())]
    if attached := [name for name in names if name.lower().endswith(".pdf")]:  # not the XML of an invoice
        say_once(f"{path}: attached PDFs are not read: {', '.join(attached)}; save them to read them")


def draw_page(path: Path, index: int, name: str | None = None, source: str | None = None) -> Image.Image:
    """Draw a page, counted from 0, as RGB, with its form fields and annotations.

    name: what messages call the file; None for its path. source: a fault that many pages have is said once for each
    source; None for the file.

    What a viewer hides on screen stays hidden. The page has DPI pixels an inch, or fewer so as not to exceed
    MAX_PIXELS. Raises InputError, naming file and page, if it cannot be drawn or has an image too large to decode.
    """
    import pypdfium2

    from calib_data.sources.pdf_annotations import prepare_annotations  # needs pypdfium2, which is optional

    place, source = f"{name or path}: page {index + 1}", source or str(path)
    with missing_fonts_said(source, place), _opened(path) as pdf:
        try:
            prepare_annotations(pdf, index, source, place)
            page = pdf[index]
            _refuse_huge_images(page, place)
            image: Image.Image = page.render(scale=_scale(*page.get_size()), rev_byteorder=True).to_pil()
        except (pypdfium2.PdfiumError, ValueError) as error:
            raise InputError(f"{place} cannot be drawn ({error}); save it as an image") from error
        return image.copy()  # PDFium owns the pixels, and frees them with the document


@contextmanager
def _opened(path: Path) -> Iterator[PdfDocument]:
    """Open a PDF whose forms are drawn. Raises InputError if it is empty, cut short, encrypted or damaged."""
    require_package("pypdfium2", "data", f"{path}: reading PDF files")
    import pypdfium2
    from pypdfium2 import raw

    _refuse_truncated(path)
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: cannot be read as a PDF ({error}), it may be damaged or encrypted") from error
    with pdf:
        if pdf.get_formtype() == raw.FORMTYPE_XFA_FULL:
            raise InputError(f"{path}: is a dynamic XFA form, which has no pages of its own; print it to a PDF")
        # Not `init_forms`: it passes over fields that no form lists, as merging PDFs leaves them, and viewers do not.
        config = raw.FPDF_FORMFILLINFO(version=2)
        pdf.formenv = pypdfium2.PdfFormEnv(raw.FPDFDOC_InitFormFillEnvironment(pdf, config), config)
        yield pdf


def _refuse_truncated(path: Path) -> None:
    """Raise InputError for a file without an end: PDFium would repair it, and draw lost pages empty."""
    refuse_special(path, "give the path of a PDF")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; give the path of a PDF") from error
    if not size:
        raise InputError(f"{path}: cannot be read as a PDF, it is empty; copy or download it again")
    if _END not in tail:
        raise InputError(
            f"{path}: cannot be read as a PDF, its end ({_END.decode()}) is missing; copy or download it again"
        )


def _refuse_huge_images(page: PdfPage, place: str) -> None:
    """Raise InputError for an image that PDFium would decode whole and that has more pixels than Pillow's limit."""
    from pypdfium2 import PdfImage, raw

    for image in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
        assert isinstance(image, PdfImage)
        width, height = image.get_px_size()
        limit = Image.MAX_IMAGE_PIXELS
        if limit and width * height > limit and _DECODED_WHOLE & set(image.get_filters()):
            raise InputError(f"{place}: has an image of {width} x {height} pixels, more than {limit}; save it smaller")


def _scale(width: float, height: float) -> float:
    """Pixels a point of a page of width x height points.

    Each side is rounded up to whole pixels, so (width * scale + 1) * (height * scale + 1) is solved for MAX_PIXELS.
    Raises ValueError for a page without a size.
    """
    if not 0 < width * height < math.inf:
        raise ValueError(f"its size is {width} x {height} points")
    sides, pixels = width + height, MAX_PIXELS - 1
    return min(DPI / 72, 2 * pixels / (sides + math.sqrt(sides**2 + 4 * width * height * pixels)))


def _document(path: Path, index: int, name: str) -> Document:
    return Document(partial(draw_page, path, index), READ_TEXT, None, name)
