"""A folder of images; the .txt file of the same name holds the answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from calib_data.document import READ_TEXT, Document
from calib_data.images import open_image, visible_paths
from calib_data.sources.entry import Entry
from console.files import read_text

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def folder_entries(folder: Path) -> list[Entry]:
    """The images of a folder by name; hidden files and what lies in folders below it are passed over."""
    files = [file for file in visible_paths(folder) if file.suffix.lower() in SUFFIXES]
    return [Entry(file.name, partial(_document, file)) for file in files]


def _document(file: Path) -> Document:
    truth = file.with_suffix(".txt")
    answer = read_text(truth, "save it as UTF-8 text").strip() if truth.is_file() else None
    return Document(partial(open_image, file), READ_TEXT, answer, file.name)
