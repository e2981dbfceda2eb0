"""The lines of a JSONL file: {"image": path, "prompt": text, "answer": text, "reasoning": text}, paths relative to it.

Other usual names of these keys are in `fields`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from calib_data.document import READ_TEXT, Document
from calib_data.images import open_image
from calib_data.sources.fields import (
    ANSWERS,
    IMAGES,
    NAMES,
    PROMPTS,
    REASONINGS,
    given,
    image_of,
    may_ask,
    may_show,
    name_of,
    question_of,
    text_of,
    texts_of,
)
from console.errors import InputError, naming
from console.files import read_text
from console.progress import say_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL import Image

# Benchmarks keep the question as `text`, datasets the true text of a page.
_ANSWERS_TO_QUESTIONS = tuple(name for name in ANSWERS if name != "text")


@dataclass(frozen=True)
class Question:
    """One line that asks."""

    image: str | None
    """Path as it is written."""
    prompt: str
    """What is asked."""
    name: str | None
    """What the line calls its document."""


@dataclass(frozen=True)
class _Row:
    """One line of the file."""

    number: int
    """Of the line, from 1."""
    image: str | None
    """Path as it is written."""
    prompt: str
    """What is asked; READ_TEXT for an image without a prompt."""
    answers: tuple[str, ...]
    """The true answers."""
    reasoning: str | None
    """What comes before the answer."""
    unread: tuple[str, ...]
    """Keys that nobody reads."""
    name: str | None
    """What it calls its document."""


def jsonl_documents(path: Path) -> list[Callable[[], Document]]:
    """All lines in order."""
    return [partial(_document, path, row) for row in _rows(path, ANSWERS)]


def open_questions(path: Path) -> list[tuple[str, Document]]:
    """All lines of a .jsonl of {"image", "prompt"}, in order: its place, as errors name it, and its document.

    Either of the two may be left out. Raises InputError for a line that is not valid; pictures are not opened yet.
    """
    questions = [(_place(path, row.number), _document(path, row)) for row in _rows(path, _ANSWERS_TO_QUESTIONS)]
    if not questions:
        raise InputError(f"{path}: holds no questions")
    return questions


def parse_question(line: str, place: str, prompt: str | None = None) -> Question:
    """One line of a .jsonl of {"image", "prompt", "document"}, of which "image" or "prompt" may be left out.

    place: what errors call the line. prompt: of a line without its own; None: an image is read. Raises InputError.
    """
    row = _checked(line, 1, place, _ANSWERS_TO_QUESTIONS, prompt, NAMES)
    return Question(row.image, row.prompt, row.name)


def _rows(path: Path, answers: Sequence[str]) -> list[_Row]:
    """Parse all lines, and say on stderr which keys are not read. answers: keys of true answers."""
    rows: list[_Row] = []
    for number, line in enumerate(read_text(path, "give a .jsonl file in UTF-8").split("\n"), start=1):
        if line.strip():
            rows.append(_checked(line, number, _place(path, number), answers))
    if unread := dict.fromkeys(key for row in rows for key in row.unread):
        say_once(f"{path}: keys that are not read: {', '.join(map(repr, unread))}")
    return rows


def _checked(
    line: str,
    number: int,
    place: str,
    answers: Sequence[str],
    default: str | None = None,
    names: Sequence[str] = (),
) -> _Row:
    try:
        return _parse(line, number, answers, default, names)
    except (ValueError, RecursionError) as error:  # the latter for brackets that are a thousand deep
        raise InputError(f"{place} is not valid: {error}") from error


def _parse(line: str, number: int, answers: Sequence[str], default: str | None, names: Sequence[str]) -> _Row:
    """Parse one line. Raises ValueError if it is not valid, for a number of thousands of digits too.

    names: keys of the document's name; a picture may not be there.
    """
    row = json.loads(line, object_pairs_hook=_unique)
    if not isinstance(row, dict):
        raise ValueError('no object, write {"image": ..., "prompt": ..., "answer": ...}')
    image, prompt = image_of(row, given(row, IMAGES)), question_of(row, given(row, PROMPTS))
    reasoning = text_of(row, given(row, REASONINGS))
    truths = texts_of(row, given(row, answers))
    unread = tuple(key for key in row if key not in {*IMAGES, *PROMPTS, *REASONINGS, *answers})
    shown = next((key for key in unread if may_show(row[key])), None)
    if image is None and shown is not None:
        raise ValueError(f"it has no 'image', and its key {shown!r} is not read; rename it to 'image', or drop it")
    if prompt is None:
        unknown = tuple(key for key in unread if key not in names)
        prompt = _default_prompt(row, image, unknown) if default is None or image is None else default
    for text in (prompt, reasoning or "", *truths):
        text.encode()  # JSON can hold half of a surrogate pair, which no tokenizer takes
    return _Row(number, image, prompt, tuple(truths), reasoning, unread, name_of(row))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError where a key is there twice: JSON would take the last."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"key {twice[0]!r} is there twice, keep one")
    return dict(pairs)


def _default_prompt(row: dict[str, Any], image: str | None, unread: tuple[str, ...]) -> str:
    """READ_TEXT. Raises ValueError without an image, and where an unread key may have the question.

    An unread key is harmless only where nothing is asked in its place.
    """
    asked = next((key for key in unread if may_ask(row[key])), None)
    if asked is not None:
        raise ValueError(
            f"it has no 'prompt', and its key {asked!r} is not read; rename it to 'prompt' if it is the question, "
            f'else add "prompt": "{READ_TEXT}"'
        )
    if image is None:
        raise ValueError("it has neither an 'image' nor a 'prompt'")
    return READ_TEXT


def _place(path: Path, number: int) -> str:
    return f"{path}: line {number}"


def _document(path: Path, row: _Row) -> Document:
    answer, also = next(iter(row.answers), None), row.answers[1:]
    if row.image is None:
        return Document(None, row.prompt, answer, f"line/{row.number}", also, row.reasoning)
    opener = partial(_open_image, path, row.image, row.number)
    return Document(opener, row.prompt, answer, f"{row.image}:{row.number}", also, row.reasoning)


def _open_image(path: Path, image: str, number: int) -> Image.Image:
    with naming(_place(path, number)):
        return open_image(path.parent / image)
