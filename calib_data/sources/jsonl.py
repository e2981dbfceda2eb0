"""The lines of a JSONL file: {"image": path, "prompt": text, "answer": text}, paths relative to the file."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from calib_data.document import READ_TEXT, Document
from calib_data.images import open_image
from calib_data.sources.entry import Entry
from console.errors import InputError, naming
from console.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL import Image


@dataclass(frozen=True)
class _Row:
    """One line of the file."""

    number: int
    """Of the line, from 1."""
    image: str | None
    """Path as it is written."""
    prompt: str
    """What is asked; READ_TEXT for an image without a prompt."""
    answer: str | None
    """The true answer."""


def jsonl_entries(path: Path) -> list[Entry]:
    """All lines in order. The picture, or the prompt where there is none, decides the split."""
    return [Entry(_key(row), partial(_document, path, row)) for row in _rows(path)]


def open_questions(path: Path) -> list[tuple[str, Document]]:
    """All lines of a .jsonl of {"image", "prompt"}, in order: its place, as errors name it, and its document.

    Either of the two may be left out. Raises InputError for a line that is not valid; pictures are not opened yet.
    """
    questions = [(_place(path, row.number), _document(path, row)) for row in _rows(path)]
    if not questions:
        raise InputError(f"{path}: holds no questions")
    return questions


def _key(row: _Row) -> str:
    """Equal for all questions about one picture, however its path is written."""
    return row.prompt if row.image is None else posixpath.normpath(row.image)


def _rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_text(path, "give a .jsonl file in UTF-8").split("\n"), start=1):
        if line.strip():
            try:
                yield _parse(line, number)
            except (ValueError, RecursionError) as error:  # the latter for brackets that are a thousand deep
                raise InputError(f"{_place(path, number)} is not valid: {error}") from error


def _parse(line: str, number: int) -> _Row:
    """Parse one line. Raises ValueError if it is not valid, for a number of thousands of digits too."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError('no object, write {"image": ..., "prompt": ..., "answer": ...}')
    image, prompt, answer = (row.get(key) for key in ("image", "prompt", "answer"))
    if prompt is None and image is not None:
        prompt = READ_TEXT
    for key, text in (("image", image), ("prompt", prompt), ("answer", answer)):
        if not isinstance(text, str | None):
            raise ValueError(f"{key!r} is not text")
    if prompt is None:
        raise ValueError("it has neither an 'image' nor a 'prompt'")
    for text in (prompt, answer or ""):
        text.encode()  # JSON can hold half of a surrogate pair, which no tokenizer takes
    return _Row(number, image, prompt, answer)


def _place(path: Path, number: int) -> str:
    return f"{path}: line {number}"


def _document(path: Path, row: _Row) -> Document:
    if row.image is None:
        return Document(None, row.prompt, row.answer, f"line/{row.number}")
    name = f"{row.image}:{row.number}"
    return Document(partial(_open_image, path, row.image, row.number), row.prompt, row.answer, name)


def _open_image(path: Path, image: str, number: int) -> Image.Image:
    with naming(_place(path, number)):
        return open_image(path.parent / image)
