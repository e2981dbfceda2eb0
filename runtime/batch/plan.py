"""The plan of a run: its pages in shards of a fixed order, listed once and kept with the output.

A shard is what a worker is given, what it writes, and what is done again where a worker dies: an output file with the
shard's number either has all its rows or is not there. So a page is never twice in the output, whoever wrote it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.batch.source.page import PART_PAGES, Listed, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.batch.storage import Storage

PLAN = "plan.jsonl"
SHARDS = 512
"""Shards that a run has if it can: so that all workers have some, and little is lost where one stops."""
LARGEST = 64
"""Most pages of a shard: files and storage operations of a large run become fewer."""


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
    first: int
    """Number of its first row in the run, from 0."""
    rows: int
    """Rows of its output."""
    offset: int
    """Where its line begins, in bytes."""
    length: int
    """Bytes of its line."""


def shard_pages(pages: int) -> int:
    """Most pages of a shard, in a run of so many pages."""
    return min(LARGEST, max(PART_PAGES, pages // SHARDS))


def shards(listed: Iterable[Listed], most: int) -> Iterator[Shard]:
    """Pack parts into shards of at most so many pages; a document with more, as one row, has its own."""
    parts: list[Part] = []
    number = first = pages = 0
    for one in listed:
        if parts and pages + one.pages > most:
            shard = Shard(number, first, _joined(parts))
            yield shard
            parts, number, first, pages = [], number + 1, first + shard.rows, 0
        parts.append(one.part)
        pages += one.pages
    if parts:
        yield Shard(number, first, _joined(parts))


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Parts of which those that follow one another in a file are one."""
    joined = parts[:1]
    for part in parts[1:]:
        before = joined[-1]
        follows = part.first == before.first + before.count or part.offset > before.offset  # lines may be empty
        if part.file == before.file and follows:
            joined[-1] = replace(before, count=before.count + part.count)
        else:
            joined.append(part)
    return tuple(joined)


def write_plan(output: Storage, settings: dict[str, Any], listed: Iterable[Listed]) -> None:
    """Write the plan: a line of settings, which a later run must have too, a line for each shard, and its end.

    One that another run has written to a bucket meanwhile stays.

    Raises InputError where nothing is listed, and where the file cannot be written.
    """
    pages = 0
    with tempfile.TemporaryFile() as parts:  # as objects of Python, millions would take gigabytes
        for one in listed:
            parts.write(json.dumps([one.pages, *_brief(one.part)]).encode() + b"\n")
            pages += one.pages
        if not pages:
            raise InputError(f"{settings['input']}: holds no pages; give images, PDFs, a .jsonl or .parquet file")
        parts.seek(0)
        lines, rows = [json.dumps(settings).encode() + b"\n"], 0
        for shard in shards(map(_listed, parts), shard_pages(pages)):
            line = {"first": shard.first, "parts": [_brief(part) for part in shard.parts]}
            lines.append(json.dumps(line).encode() + b"\n")
            rows += shard.rows
    lines.append(json.dumps({"rows": rows}).encode() + b"\n")
    output.create(PLAN, b"".join(lines))


def _listed(line: bytes) -> Listed:
    pages, *values = json.loads(line)
    return Listed(Part(*values), pages)


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
                rows = sum(part[2] for part in entry["parts"])
                found.append(Planned(number, entry["first"], rows, offset, len(line)))
                offset += len(line)
            if end != sum(shard.rows for shard in found):
                raise ValueError("lines are missing")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{output.url}/{PLAN}: is damaged ({error}); give another --output") from error
    return settings, found


def read_shard(output: Storage, planned: Planned) -> Shard:
    """One shard of the plan. Raises InputError where it is another plan than was read at the start."""
    try:
        line = json.loads(output.read(PLAN, planned.offset, planned.offset + planned.length))
        shard = Shard(planned.number, line["first"], tuple(Part(*part) for part in line["parts"]))
        if (shard.first, shard.rows) != (planned.first, planned.rows):
            raise ValueError("it begins with another row")
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{output.url}/{PLAN}: was replaced while the run reads it ({error})") from error
    return shard


def _brief(part: Part) -> list[Any]:
    """The fields of a part, without those at the end that have their default."""
    values = list(asdict(part).values())
    while len(values) > 3 and values[-1] in (0, None):
        values.pop()
    return values
