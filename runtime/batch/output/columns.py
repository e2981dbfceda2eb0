"""Columns of the output: those of every run, and one for each field of a JSON schema."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from console.errors import InputError
from console.text import escape_surrogates
from runtime.batch.output.json_schema import ArrowTypes

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("page", pa.int32()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("reasoning", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("tokens", pa.int32()),
        pa.field("milliseconds", pa.int32()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
"""Of every run. `finish` is "end" or "length" as `generate` says it; the answer's columns are null with an error."""
_SHOWN = 40  # letters of a value in a message


def field_columns(schema: Mapping[str, Any]) -> list[pa.Field]:
    """A column for each property of a JSON schema of an object.

    Strings, numbers, booleans, and lists and objects of them have Arrow types. All other values are kept as JSON text.
    Members of an object that the schema does not name are left out. Raises InputError for a schema of something else,
    and for a property with the name of another column.
    """
    return _columns(schema)[0]


def fields_as_json(schema: Mapping[str, Any]) -> list[str]:
    """Parts of a JSON schema, such as `lines[].code`, whose values are kept as JSON text: they have no one Arrow type.

    Raises InputError as `field_columns` does.
    """
    return _columns(schema)[1]


def _columns(schema: Mapping[str, Any]) -> tuple[list[pa.Field], list[str]]:
    types = ArrowTypes(schema)
    top = types.top()
    properties = top.get("properties") if isinstance(top, dict) and top.get("type", "object") == "object" else None
    if not isinstance(properties, dict) or not properties:
        raise InputError("is no object with properties; its properties become columns")
    if taken := [name for name in properties if name in BASE.names]:
        raise InputError(f"property {taken[0]!r} is also a column of the output; rename it")
    try:
        return types.fields(properties), types.as_json
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise InputError(f"property {error.object!a} is not valid Unicode; rename it") from error


def parse_fields(answer: str, columns: list[pa.Field]) -> tuple[dict[str, Any], str | None]:
    """The values of an answer for these columns, null where it has none; and what is wrong with it, or None."""
    empty = {column.name: None for column in columns}
    try:
        found = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return empty, "the answer is not JSON"
    if not isinstance(found, dict):
        return empty, "the answer is no JSON object"
    values, problems = empty, []
    for column in columns:
        try:
            values[column.name] = _value(found.get(column.name), column.type)
        except ValueError as error:
            problems.append(f"field {column.name!r}: {error}")
        except RecursionError:  # where it could just be read
            problems.append(f"field {column.name!r}: has too many levels")
    return values, problems[0] if problems else None


def _value(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON value as its column holds it. Raises ValueError, which says what does not fit."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_value(item, kind.value_type) for item in _checked(value, list, "list")]
    if pa.types.is_struct(kind):
        members = _checked(value, dict, "object")
        return {field.name: _value(members.get(field.name), field.type) for field in kind}
    if pa.types.is_boolean(kind):
        return _checked(value, bool, "boolean")
    return _text(value) if pa.types.is_string(kind) else _number(value, kind)


def _checked(value: Any, kind: type, name: str) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, kind):
        raise ValueError(f"{_shown(value)} is no {name}")
    return value


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Text as it is, all else as JSON."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:  # 1e999 is valid JSON
        raise ValueError(f"{_shown(value)} has a number that is too large") from error
    if not text.isascii() and escape_surrogates(text) != text:
        raise ValueError(f"{_shown(value)} is not valid Unicode")
    return text


def _number(value: Any, kind: pa.DataType) -> int | float:  # noqa: ANN401 - any JSON value
    """A JSON number that its column holds exactly."""
    whole = pa.types.is_integer(kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_shown(value)} is no {'integer' if whole else 'number'}")
    try:
        number = int(value) if whole else float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) if not whole else not -(2**63) <= number < 2**63:
        raise ValueError(f"{_shown(value)} is too large for its column")
    if number != value:
        raise ValueError(f"{_shown(value)} {'is no integer' if whole else 'has too many digits for its column'}")
    return number


def _shown(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A value as JSON, shortened; a text keeps its quotes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return escape_surrogates(json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text)


def _refuse(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)
