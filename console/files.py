"""Files of a model folder, as text and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from console.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_ADVICE = "copy it from the model's original folder"


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises InputError where that cannot be done."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, {_ADVICE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}), {_ADVICE}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises InputError where it does not."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}), {_ADVICE}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object, {_ADVICE}")
    return value
