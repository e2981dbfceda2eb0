"""Prepare the annotations of a PDF page for PDFium, which draws those that have an appearance, and makes up others.

A program that fills a form should write how each field looks. Many write the value alone and leave the appearance
empty, as it was. PDFium shows the appearance, so an empty one is dropped here: then PDFium draws the value.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from ctypes import POINTER, cast, create_string_buffer
from typing import TYPE_CHECKING, Any

from pypdfium2 import raw

from console.progress import say_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pypdfium2 import PdfDocument

_TEXTS = {raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX}
_BUTTONS = {raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON}
_UNSEEN = raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW
_NOT_DRAWN = {  # without an appearance
    raw.FPDF_ANNOT_LINE: "a line",
    raw.FPDF_ANNOT_POLYGON: "a polygon",
    raw.FPDF_ANNOT_POLYLINE: "a polyline",
    raw.FPDF_ANNOT_STAMP: "a stamp",
}
_DRAWS = re.compile(r"(?:^|[\s)\]>])(?:Tj|TJ|'|\"|Do|BI|c|v|y)(?=\s|$)")  # operators of text, images and curves
_ON = "Yes"  # the state in which PDFium draws a ticked button


def prepare_annotations(pdf: PdfDocument, index: int, name: str, place: str) -> None:
    """Have a page, not opened yet, draw each value of its form; says, once a file, which annotations stay undrawn.

    name: of the file. place: of the page. A page that cannot be opened is left alone.
    """
    page = raw.FPDF_LoadPage(pdf, index)
    missing = []
    for number in range(raw.FPDFPage_GetAnnotCount(page) if page else 0):
        with _annotation(page, number) as annotation:
            if raw.FPDFAnnot_GetFlags(annotation) & _UNSEEN:
                continue
            if raw.FPDFAnnot_GetSubtype(annotation) == raw.FPDF_ANNOT_WIDGET:
                _show_value(pdf, annotation)
            elif kind := _undrawn(annotation):
                missing.append(kind)
    raw.FPDF_ClosePage(page)
    if missing:
        kinds = " and ".join(dict.fromkeys(missing))
        line = f"{kinds} without an appearance is not drawn; print the page to a PDF, or save it as an image"
        say_once(f"{place}: {line}", about=(name, kinds))


@contextmanager
def _annotation(page: Any, number: int) -> Iterator[Any]:  # noqa: ANN401 - PDFium's handles have no public type
    annotation = raw.FPDFPage_GetAnnot(page, number)
    try:
        yield annotation
    finally:
        raw.FPDFPage_CloseAnnot(annotation)


def _show_value(pdf: PdfDocument, field: Any) -> None:  # noqa: ANN401
    """Drop an empty appearance of a text, and give a ticked button without any the state that PDFium draws."""
    kind = raw.FPDFAnnot_GetFormFieldType(pdf.formenv, field)
    if kind in _TEXTS:
        value = _text(lambda *buffer: raw.FPDFAnnot_GetFormFieldValue(pdf.formenv, field, *buffer))
        drawn = _text(lambda *buffer: raw.FPDFAnnot_GetAP(field, raw.FPDF_ANNOT_APPEARANCEMODE_NORMAL, *buffer))
        if value.strip() and not _DRAWS.search(drawn):
            raw.FPDFAnnot_SetAP(field, raw.FPDF_ANNOT_APPEARANCEMODE_NORMAL, None)
    elif kind in _BUTTONS and not _has_appearance(field):
        state = _text(lambda *buffer: raw.FPDFAnnot_GetStringValue(field, b"AS", *buffer))
        if state not in ("", "Off"):
            on = create_string_buffer(f"{_ON}\0".encode("utf-16-le"))
            raw.FPDFAnnot_SetStringValue(field, b"AS", cast(on, POINTER(raw.FPDF_WCHAR)))


def _undrawn(annotation: Any) -> str | None:  # noqa: ANN401
    """Name an annotation that PDFium would not draw, or without its text; None for others."""
    if _has_appearance(annotation):
        return None
    kind = raw.FPDFAnnot_GetSubtype(annotation)
    if kind == raw.FPDF_ANNOT_FREETEXT:  # drawn in a font of Western letters
        text = _text(lambda *buffer: raw.FPDFAnnot_GetStringValue(annotation, b"Contents", *buffer))
        return None if text.encode("cp1252", "replace").decode("cp1252") == text else "a text"
    return _NOT_DRAWN.get(kind)


def _has_appearance(annotation: Any) -> bool:  # noqa: ANN401
    return bool(raw.FPDFAnnot_GetValueType(annotation, b"AP") == raw.FPDF_OBJECT_DICTIONARY)


def _text(read: Callable[[Any, int], int]) -> str:
    """Text that a function of PDFium writes as UTF-16 into a buffer of bytes; it returns how many it needs."""
    buffer = create_string_buffer(read(None, 0))
    read(cast(buffer, POINTER(raw.FPDF_WCHAR)), len(buffer))
    return buffer.raw.decode("utf-16-le", "replace").rstrip("\0")
