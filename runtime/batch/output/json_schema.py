"""Arrow types of a JSON schema, as written by hand or by pydantic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LEVELS = 16  # of lists and objects in each other: Arrow writes more to Parquet than it reads back
_PARTS = 2000  # that are looked at: parts that refer to each other have factorially many paths
_NAMED = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": pa.null(),
}
_OF_VALUES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), type(None): pa.null()}


@dataclass
class ArrowTypes:
    """Arrow's types for the parts of a JSON schema. A part without one is text: its values as JSON."""

    root: Mapping[str, Any]
    """The whole schema, which references point into."""
    as_json: list[str] = field(default_factory=list)
    """Parts without a type so far, such as `total` and `lines[].code`."""
    _followed: list[str] = field(default_factory=lambda: ["#"])
    """References that lead to the part that is looked at: one that comes back describes values of any depth."""

    _parts: int = 0

    def top(self) -> Any:  # noqa: ANN401 - any JSON value
        """What the root stands for: pydantic writes a model that contains itself as a reference."""
        schema: Any = self.root
        while isinstance(schema, dict) and "properties" not in schema:
            reference, every = schema.get("$ref"), schema.get("allOf")
            if isinstance(reference, str) and reference not in self._followed:
                self._followed.append(reference)
                schema = self._target(reference)
            elif isinstance(every, list) and len(every) == 1:
                schema = every[0]
            else:
                break
        return schema

    def fields(self, properties: Mapping[str, Any], place: str = "", level: int = 1) -> list[pa.Field]:
        """A field for each property. Raises UnicodeEncodeError for a name that no file can hold."""
        return [pa.field(name, self._type(value, place + name, level)) for name, value in properties.items()]

    def _type(self, schema: object, place: str, level: int) -> pa.DataType:
        """The type of a part, null apart; text for one without a type, and below _LEVELS."""
        before, self._parts = len(self.as_json), self._parts + 1
        found = self._find(schema, place, level) if level <= _LEVELS and self._parts <= _PARTS else None
        if found is None:
            self.as_json[before:] = [place]
        return pa.string() if found is None or pa.types.is_null(found) else found

    def _find(self, schema: object, place: str, level: int) -> pa.DataType | None:
        """The first type that a keyword says: a valid value is valid by each of them."""
        before = len(self.as_json)
        for found in self._types(schema, place, level) if isinstance(schema, dict) else ():
            if found is not None:
                return found
            del self.as_json[before:]
        return None

    def _types(self, schema: dict[str, Any], place: str, level: int) -> Iterator[pa.DataType | None]:
        """The type by each keyword that may say one."""
        kinds = schema.get("type", [])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        yield _common(self._of_kind(kind, schema, place, level) for kind in kinds)
        if isinstance(reference := schema.get("$ref"), str):
            yield self._follow(reference, place, level)
        for keyword in ("allOf", "anyOf", "oneOf"):
            some = schema.get(keyword)
            if isinstance(some, list) and (len(some) == 1 or keyword != "allOf"):
                yield _common(self._find(one, place, level) for one in some)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        yield _common(_OF_VALUES.get(type(value)) for value in values) if isinstance(values, list) else None

    def _of_kind(self, kind: object, schema: dict[str, Any], place: str, level: int) -> pa.DataType | None:
        if kind == "array" and "items" in schema and "prefixItems" not in schema:
            return pa.list_(self._type(schema["items"], f"{place}[]", level + 1))
        members = schema.get("properties")
        if kind == "object" and isinstance(members, dict) and members and not _names_others(schema):
            return pa.struct(self.fields(members, f"{place}.", level + 1))
        return _NAMED.get(str(kind))

    def _follow(self, reference: str, place: str, level: int) -> pa.DataType | None:
        if reference in self._followed:
            return None
        self._followed.append(reference)
        found = self._find(self._target(reference), place, level)
        self._followed.pop()
        return found

    def _target(self, reference: str) -> object:
        """The part that a reference such as `#/$defs/Line` names; None where there is none, or it is elsewhere."""
        start, *steps = unquote(reference).split("/")
        part: Any = self.root if start == "#" else None
        for step in steps:
            part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
        return part


def _names_others(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says that an object has more members than its properties; pydantic's default says nothing."""
    return "patternProperties" in schema or schema.get("additionalProperties", False) is not False


def _common(types: Iterable[pa.DataType | None]) -> pa.DataType | None:
    """One type for all, null apart. Integers and numbers together are numbers."""
    found = list(types)
    some = [one for one in found if one is None or not pa.types.is_null(one)]
    if not some:
        return found[0] if found else None
    if all(one in (pa.int64(), pa.float64()) for one in some):
        return pa.float64() if pa.float64() in some else pa.int64()
    return some[0] if all(one == some[0] for one in some) else None
