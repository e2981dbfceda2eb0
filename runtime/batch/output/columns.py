"""Columns of the output: those of every run, and one for each field of a JSON schema."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from console.errors import InputError

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
_LEVELS = 16  # of lists and objects in each other: Arrow writes more to Parquet than it reads back
_TYPES = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


def field_columns(schema: Mapping[str, Any]) -> list[pa.Field]:
    """A column for each property of a JSON schema of an object.

    Text, numbers, truth values, and lists and objects of them, have Arrow's types, all others are text: the value as
    JSON. Raises InputError for a schema of something else, and for a property with the name of another column.
    """
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, dict) or not properties:
        raise InputError("is no object with properties; its properties become columns")
    if taken := [name for name in properties if name in BASE.names]:
        raise InputError(f"property {taken[0]!r} is also a column of the output; rename it")
    return _fields(properties, 1)


def _fields(properties: Mapping[str, Any], level: int) -> list[pa.Field]:
    """A field for each property. Raises InputError for a name that no file can hold: half of a surrogate pair."""
    try:
        return [pa.field(name, _type(value, level)) for name, value in properties.items()]
    except UnicodeEncodeError as error:
        raise InputError(f"property {error.object!a} is not valid Unicode; rename it") from error


def _type(schema: object, level: int) -> pa.DataType:
    """Arrow's type for a JSON schema, `null` apart; text where it allows several, and below _LEVELS."""
    if not isinstance(schema, dict) or level > _LEVELS:
        return pa.string()
    kinds = schema.get("type")
    kinds = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
    kind = kinds[0] if len(kinds) == 1 else None
    if kind == "array" and "items" in schema and "prefixItems" not in schema:
        return pa.list_(_type(schema["items"], level + 1))
    members = schema.get("properties")
    if kind == "object" and isinstance(members, dict) and members and schema.get("additionalProperties") is False:
        return pa.struct(_fields(members, level + 1))
    return _TYPES.get(str(kind), pa.string())


def parse_fields(answer: str, columns: list[pa.Field]) -> tuple[dict[str, Any], str | None]:
    """The values of an answer for these columns, null where it has none; and what is wrong with it, or None."""
    empty = {column.name: None for column in columns}
    try:
        found = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return empty, "the answer is not JSON"
    if not isinstance(found, dict):
        return empty, "the answer is no JSON object"
    values, problem = {}, None
    for column in columns:
        try:
            values[column.name] = _value(found.get(column.name), column.type)
            pa.array([values[column.name]], column.type)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            values[column.name], problem = None, f"field {column.name!r} does not fit its column"
    return values, problem


def _value(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON value as its column holds it. Raises ValueError and TypeError where it does not fit."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise TypeError
        return [_value(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        if not isinstance(value, dict):
            raise TypeError
        return {field.name: _value(value.get(field.name), field.type) for field in kind}
    return value if pa.types.is_boolean(kind) else _number(value, int if pa.types.is_int64(kind) else float)


def _number(value: Any, kind: type[int | float]) -> int | float:  # noqa: ANN401 - any JSON value
    """A JSON number. Raises ValueError, OverflowError and TypeError for what is none, or not exactly of this kind."""
    number = kind(value)
    if isinstance(value, bool | str) or number != value or math.isinf(number):  # 1e999 is valid JSON
        raise ValueError
    return number


def _refuse(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)
