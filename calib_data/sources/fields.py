"""The names under which datasets and JSONL files keep a document's parts."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from calib_data.images import SUFFIXES
from calib_data.scores import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

IMAGES = ("image", "images", "file_name", "image_path")
PROMPTS = ("prompt", "question", "query")
ANSWERS = ("answer", "answers", "text", "ground_truth")
NAMES = ("document", "id", "name")
REASONINGS = ("reasoning", "reasoning_content", "thinking")


def given(row: Mapping[str, object], names: Iterable[str]) -> str | None:
    """The one of these names that has a value; None if there is none. Raises ValueError if several have."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise ValueError(f"it has {' and '.join(map(repr, found))}, keep one of them")
    return found[0] if found else None


def name_of(row: Mapping[str, object]) -> str | None:
    """What a row calls its document: the first of NAMES that it has."""
    return next((str(row[name]) for name in NAMES if row.get(name) is not None), None)


def image_of(row: Mapping[str, object], name: str | None) -> str | None:
    """One path under a name, in a list or not. Raises ValueError for several, and if it is not text."""
    value = None if name is None else row[name]
    paths = value if isinstance(value, list) else [value]
    if len(paths) > 1:
        raise ValueError(f"{name!r} has {len(paths)} pictures, and one is read; give each a line of its own")
    return _text(paths[0] if paths else None, name)


def question_of(row: Mapping[str, object], name: str | None) -> str | None:
    """Text under a name. Raises ValueError if it is not text, or nothing can be seen of it."""
    text = text_of(row, name)
    if text is not None and not visible(text):
        raise ValueError(f"{name!r} is empty; write a question, or leave it out to have an image read")
    return text


def text_of(row: Mapping[str, object], name: str | None) -> str | None:
    """Text under a name; None without a name. Raises ValueError if it is not text."""
    return _text(None if name is None else row[name], name)


def _text(value: object, name: str | None) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"{name!r} is not text")
    return value


def texts_of(row: Mapping[str, object], name: str | None) -> list[str]:
    """One text or several under a name. Raises ValueError if one is not text."""
    value = None if name is None else row[name]
    values = value if isinstance(value, list) else [] if value is None else [value]
    texts = [text for text in values if isinstance(text, str)]
    if len(texts) < len(values):
        raise ValueError(f"{name!r} is not text, give one text or a list of texts that are equally true")
    return texts


def may_show(value: object) -> bool:
    """Whether a value could be a picture: the path of a file, a `data:` URI, or something that holds one."""
    if isinstance(value, dict | list):
        return any(map(may_show, value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str):
        return False
    return value.startswith("data:image/") or PurePath(value).suffix.lower() in SUFFIXES


def may_ask(value: object) -> bool:
    """Whether a value could be a question: a phrase, or something that holds one."""
    if isinstance(value, dict | list):
        return any(map(may_ask, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and ("?" in value or len(value.split()) > 1)
