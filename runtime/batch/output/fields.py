"""What the values of a field are: the most frequent ones of text, the range of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from runtime.batch.output.counting import Frequent, Numbers

_SHOWN = 8
_LETTERS = 80  # of a text that are compared


@dataclass(frozen=True)
class FieldValues:
    """Values of a field in all rows. Numbers have a range, texts and booleans the most frequent ones."""

    kind: str
    """What the field holds: "text", "integer", "number", "boolean", "list" or "object"."""
    least: float | None = None
    """Smallest number."""
    median: float | None = None
    """Median of the numbers."""
    most: float | None = None
    """Largest number."""
    sampled: bool = False
    """Whether the median is that of 1000 numbers drawn at random."""
    frequent: tuple[tuple[str, int], ...] = ()
    """The most frequent values with their rows; texts with the same first 80 letters are one."""
    different: int | None = None
    """How many values there are; None where they are not counted, or are more than 1000."""
    missed: int = 0
    """Rows of the frequent values may be too few by this."""


class FieldCounter(Protocol):
    """Counts the values of one field."""

    def add(self, value: Any) -> None:  # noqa: ANN401 - any value of a column
        """Count a value."""

    def values(self) -> FieldValues:
        """What was counted."""


def field_counter(kind: pa.DataType) -> FieldCounter:
    """A counter for a column of this type."""
    if pa.types.is_integer(kind):
        return _NumberField("integer")
    if pa.types.is_floating(kind):
        return _NumberField("number")
    if pa.types.is_boolean(kind):
        return _TextField("boolean")
    if pa.types.is_string(kind):
        return _TextField("text")
    return _Uncounted("list" if pa.types.is_list(kind) else "object")


class _TextField:
    def __init__(self, kind: str) -> None:
        self._kind, self._frequent = kind, Frequent()

    def add(self, value: str | bool) -> None:
        text = value if isinstance(value, str) else ("true" if value else "false")
        self._frequent.add(text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…")

    def values(self) -> FieldValues:
        counted = self._frequent
        return FieldValues(
            self._kind, frequent=tuple(counted.most(_SHOWN)), different=counted.different, missed=counted.missed
        )


class _NumberField:
    def __init__(self, kind: str) -> None:
        self._kind, self._numbers = kind, Numbers()

    def add(self, value: float) -> None:
        self._numbers.add(value)

    def values(self) -> FieldValues:
        found = self._numbers
        if not found.count:
            return FieldValues(self._kind)
        return FieldValues(self._kind, found.least, found.median, found.most, found.sampled)


class _Uncounted:
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def add(self, value: object) -> None:
        pass

    def values(self) -> FieldValues:
        return FieldValues(self._kind)
