"""Find and read text and JSON files, with one clear error."""

from __future__ import annotations

import codecs
import json
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from console.errors import InputError
from console.text import canonical, short_repr

Content = TypeVar("Content")
Size = Annotated[int, Field(ge=1, le=1 << 30)]
"""A length of an axis, or a number of tokens or pixels; no larger than kernels can count."""
RESTORE = "copy it from the model's original folder"


def existing(path: Path) -> Path:
    """The path as its folders spell it: macOS decomposes Hangul and accents in names, lists of files often do not.

    Returns the path itself where nothing has that name.
    """
    if os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        name = part if os.path.lexists(found / part) else _names(found, _changed(found)).get(canonical(part))
        if name is None:
            return path
        found /= name
    return found


def refuse_special(path: Path, advice: str) -> None:
    """Raise InputError for a pipe, socket or device: to open or read it may wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is no regular file; {advice}")


@lru_cache(maxsize=8)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """Names in a folder by their NFC; none in what is no folder. changed: when, so that new files are seen."""
    return {canonical(name): name for name in sorted(os.listdir(folder))} if changed else {}  # noqa: PTH208


def _changed(folder: Path) -> int:
    """When names in a folder changed, in nanoseconds; 0 if it cannot be listed."""
    return folder.stat().st_mtime_ns if os.access(folder, os.R_OK) and folder.is_dir() else 0


def read_text(path: Path, advice: str = RESTORE) -> str:
    """Read a file of UTF-8, or of UTF-16 with a byte order mark. Raises InputError, which ends with the advice."""
    try:
        text = path.read_text(encoding=_encoding(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, {advice}") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: UTF-16 of an odd number of bytes
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}), {advice}") from error
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8 where it is ASCII
        raise InputError(f"{path}: cannot be read (it has NUL characters, as UTF-16 without a mark), {advice}")
    return text


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        mark = file.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


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
        raise InputError(f"{path}: {field}: {first['msg']}, found {short_repr(first['input'])}; {advice}") from None
