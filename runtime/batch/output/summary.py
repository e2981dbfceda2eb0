"""What the output holds: counted from its files, so that it is the same however often a run was stopped."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.batch.output.counting import Frequent, Tally
from runtime.batch.output.fields import field_counter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.batch.output.counting import Spread
    from runtime.batch.output.fields import FieldCounter, FieldValues
    from runtime.batch.output.shards import ShardFiles
    from runtime.batch.plan import Planned

_COUNTED = ("row", "document", "page", "finish", "prompt_tokens", "tokens", "milliseconds", "attempts", "error")
_KINDS = 20  # of errors that are shown
_LETTERS = 300  # of an error that are compared
_VARIES = re.compile(r'"(?:\\.|[^"\\])*"|\d+')  # a value or number, which differs between pages with the same error


@dataclass(frozen=True)
class ErrorKind:
    """Pages with the same error, but for numbers and what is in double quotes."""

    message: str
    """What is wrong with the first of them, without its place."""
    pages: int
    """Number of them."""
    example: str
    """The first of them."""
    row: int
    """Its number in the output."""
    shard: int
    """Number of the file that it is in."""


@dataclass
class Summary:
    """Counts over all pages that are written."""

    pages: int = 0
    """Rows."""
    documents: int = 0
    """Documents; those that the source has one after another are told apart."""
    answered: int = 0
    """Rows without an error."""
    truncated: int = 0
    """Answers that ended at --max-new-tokens."""
    retried: int = 0
    """Rows of shards that were begun again after a worker or a run was stopped."""
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    tokens: int = 0
    """Tokens of all answers."""
    milliseconds: int = 0
    """Time of all answers, which overlap."""
    errors: list[ErrorKind] = field(default_factory=list)
    """The most frequent ones."""
    errors_missed: int = 0
    """Pages of an error may be too few by this: with more than 1000 kinds, they are not all counted."""
    answer_tokens: Spread | None = None
    """Tokens of an answer; None without answers."""
    answer_milliseconds: Spread | None = None
    """Time of an answer, from when it is asked; None without answers."""
    filled: dict[str, int] = field(default_factory=dict)
    """For each field of the schema, rows with a value."""
    values: dict[str, FieldValues] = field(default_factory=dict)
    """For each field of the schema, what these values are."""


def summarize(files: ShardFiles, planned: Iterable[Planned], fields: Sequence[str]) -> Summary:
    """Count what shards hold; one is in memory at a time. fields: columns of the schema.

    Raises InputError for a file without the rows that it must have.
    """
    counting, first = _Counting(files, fields), 0
    for shard in planned:
        rows = files.read(shard.number, (*_COUNTED, *fields))
        end = first + shard.rows
        if [row["row"] for row in rows] != list(range(first, end)):
            place = f"{files.storage.url}/{files.name(shard.number)}"
            problem = f"is damaged (it must have the rows {first} to {end - 1})"
            raise InputError(f"{place}: {problem}; delete it, and run the same command again")
        for row in rows:
            counting.add(shard.number, row)
        first = end
    return counting.finish()


class _Counting:
    """A summary while rows come."""

    def __init__(self, files: ShardFiles, fields: Sequence[str]) -> None:
        self._summary = Summary(filled=dict.fromkeys(fields, 0))
        self._fields: dict[str, FieldCounter] = {name: field_counter(files.schema.field(name).type) for name in fields}
        self._tallies = {"tokens": Tally(), "milliseconds": Tally()}
        self._kinds = Frequent()
        self._examples: dict[str, ErrorKind] = {}
        self._last: str | None = None

    def add(self, shard: int, row: dict[str, Any]) -> None:
        """Count a row, in the order of the output."""
        summary = self._summary
        summary.pages += 1
        summary.documents += row["document"] != self._last
        self._last = row["document"]
        summary.answered += row["error"] is None
        summary.truncated += row["finish"] == "length"
        summary.retried += row["attempts"] > 1
        for name in ("prompt_tokens", "tokens", "milliseconds"):
            setattr(summary, name, getattr(summary, name) + (row[name] or 0))
        for name, tally in self._tallies.items():
            if row[name] is not None:
                tally.add(row[name])
        for name, counter in self._fields.items():
            if row[name] not in (None, "", []):
                summary.filled[name] += 1
                counter.add(row[name])
        if row["error"] is not None:
            self._add_error(shard, row)

    def _add_error(self, shard: int, row: dict[str, Any]) -> None:
        message, missed = _message(row), self._kinds.missed
        kind = _VARIES.sub("#", message)[:_LETTERS]
        self._kinds.add(kind)
        if self._kinds.missed > missed:
            self._examples = {kind: one for kind, one in self._examples.items() if kind in self._kinds}
        elif kind not in self._examples:
            place = row["document"] + (f", page {row['page']}" if row["page"] else "")
            self._examples[kind] = ErrorKind(message, 1, place, row["row"], shard)

    def finish(self) -> Summary:
        """The summary of all rows."""
        summary = self._summary
        frequent = self._kinds.most(_KINDS)
        summary.errors = [replace(self._examples[kind], pages=pages) for kind, pages in frequent]
        summary.errors_missed = self._kinds.missed
        summary.answer_tokens = self._tallies["tokens"].spread()
        summary.answer_milliseconds = self._tallies["milliseconds"].spread()
        summary.values = {name: counter.values() for name, counter in self._fields.items()}
        return summary


def _message(row: dict[str, Any]) -> str:
    """An error without the place that it begins with."""
    message: str = row["error"]
    folder, found, rest = message.partition(f"{row['document']}: ")
    rest = rest if found and (not folder or folder.endswith("/")) else message
    return rest.removeprefix(f"page {row['page']}: ").removeprefix(f"page {row['page']} ")
