"""The plan of a run: its pages in shards of a fixed order, listed once and kept with the output.

A shard is what a worker is given, what it writes, and what is done again where a worker dies: an output file with the
shard's number either has all its rows or is not there. So a page is never twice in the output, whoever wrote it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.batch.source.page import SHARD_PAGES, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.batch.source.page import Listed
    from runtime.batch.storage import Storage

PLAN = "plan.jsonl"


@dataclass(frozen=True)
class Shard:
    """Pages that one worker answers and writes together."""

    number: int
    """From 0, in the order of the source."""
    first: int
    """Number of its first row in the run, from 0."""
    parts: tuple[Part, ...]
    """What is in it."""

    @property
    def rows(self) -> int:
        """Rows of its output."""
        return sum(part.count for part in self.parts)


@dataclass(frozen=True)
class Planned:
    """Where a shard is in the plan."""

    number: int
    """Of the shard."""
    rows: int
    """Rows of its output."""
    offset: int
    """Where its line begins, in bytes."""
    length: int
    """Bytes of its line."""


def shards(listed: Iterable[Listed]) -> Iterator[Shard]:
    """Pack parts into shards of at most SHARD_PAGES pages; a document with more, as one row, has its own."""
    parts: list[Part] = []
    number = first = pages = 0
    for one in listed:
        if parts and pages + one.pages > SHARD_PAGES:
            shard = Shard(number, first, tuple(parts))
            yield shard
            parts, number, first, pages = [], number + 1, first + shard.rows, 0
        parts.append(one.part)
        pages += one.pages
    if parts:
        yield Shard(number, first, tuple(parts))


def write_plan(output: Storage, settings: dict[str, Any], planned: Iterable[Shard]) -> None:
    """Write the plan: a line of settings, which a later run must have too, a line for each shard, and its end.

    Raises InputError where there is no shard, and where the file cannot be written.
    """
    with tempfile.TemporaryFile() as file:  # a plan of millions of pages is larger than what should be in memory
        file.write(json.dumps(settings).encode() + b"\n")
        rows = 0
        for shard in planned:
            file.write(json.dumps({"first": shard.first, "parts": [_brief(part) for part in shard.parts]}).encode())
            file.write(b"\n")
            rows += shard.rows
        if not rows:
            raise InputError(f"{settings['input']}: holds no pages; give images, PDFs, a .jsonl or .parquet file")
        file.write(json.dumps({"rows": rows}).encode() + b"\n")
        file.seek(0)
        output.write(PLAN, file.read())


def read_plan(output: Storage) -> tuple[dict[str, Any], list[Planned]] | None:
    """The settings of a plan, and where its shards are; None without a plan. Raises InputError if it is damaged."""
    if not output.exists(PLAN):
        return None
    found: list[Planned] = []
    try:
        with output.local(PLAN).open("rb") as file:
            head = file.readline()
            settings, offset, end = dict(json.loads(head)), len(head), None
            for number, line in enumerate(file):
                entry = json.loads(line)
                if end := entry.get("rows"):
                    break
                found.append(Planned(number, sum(part[2] for part in entry["parts"]), offset, len(line)))
                offset += len(line)
            if end != sum(shard.rows for shard in found):
                raise ValueError("lines are missing")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{output.url}/{PLAN}: is damaged ({error}); give another --output") from error
    return settings, found


def read_shard(output: Storage, planned: Planned) -> Shard:
    """One shard of the plan."""
    line = json.loads(output.read(PLAN, planned.offset, planned.offset + planned.length))
    return Shard(planned.number, line["first"], tuple(Part(*part) for part in line["parts"]))


def _brief(part: Part) -> list[Any]:
    """The fields of a part, without those at the end that have their default."""
    values = list(asdict(part).values())
    while len(values) > 3 and values[-1] in (0, None):
        values.pop()
    return values
