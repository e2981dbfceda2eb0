"""Read text and JSON files, with one clear error."""

from __future__ import annotations

import json
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from console.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

Content = TypeVar("Content")
RESTORE = "copy it from the model's original folder"


def read_text(path: Path, advice: str = RESTORE) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises InputError, which ends with the advice."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}), {advice}") from error


def read_object(path: Path, advice: str = RESTORE) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises InputError, which ends with the advice."""
    try:
        value = json.loads(read_text(path, advice))
    except (ValueError, RecursionError) as error:  # the latter for brackets that are a thousand deep
        raise InputError(f"{path}: is not valid JSON ({error}), {advice}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object, {advice}")
    return value


def to_type(kind: type[Content], value: object, path: Path, advice: str = RESTORE) -> Content:
    """Check JSON values against a pydantic type, without any conversion. path: the file they are from.

    Raises InputError, which names the first field that is wrong and what it should be, and ends with the advice.
    """
    try:  # strict, Python values could not become dataclasses, but their JSON can
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as errors:
        first = errors.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InputError(f"{path}: {field} is missing; {advice}") from None
        found = shorten(repr(first["input"]), 40)
        raise InputError(f"{path}: {field}: {first['msg']}, found {found}; {advice}") from None
