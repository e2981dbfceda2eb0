"""Some rows to look at: the first, some of the middle, the last, and one of each frequent error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.batch.output.shards import ShardFiles
    from runtime.batch.output.summary import Summary

ENDS, MIDDLE, ERRORS = 2, 4, 4  # rows from each end, in between, and with an error: a file is read for each at most


@dataclass(frozen=True)
class Sample:
    """A row, and why it is shown."""

    reason: str
    """"first", "middle", "last" or "error"."""
    row: dict[str, Any]
    """All its columns."""


def samples(files: ShardFiles, shards: Sequence[int], summary: Summary) -> list[Sample]:
    """Read them, a few shards at most. No row is there twice. shards: numbers of all, in their order."""
    chosen: dict[int, Sample] = {}
    for sample in _samples(files, shards, summary):
        chosen.setdefault(sample.row["row"], sample)
    return list(chosen.values())


def _samples(files: ShardFiles, shards: Sequence[int], summary: Summary) -> Iterator[Sample]:
    first, last = files.read(shards[0])[:ENDS], files.read(shards[-1])[-ENDS:]
    yield from (Sample("first", row) for row in first)
    for number in range(1, MIDDLE + 1):  # evenly by shards, which have equal lengths but for the last
        shard, part = divmod(number * len(shards), MIDDLE + 1)
        rows = files.read(shards[shard])
        row = rows[len(rows) * part // (MIDDLE + 1)]
        yield Sample("middle" if row["row"] < last[0]["row"] else "last", row)
    yield from (Sample("last", row) for row in last)
    for error in summary.errors[:ERRORS]:
        yield from (Sample("error", row) for row in files.read(error.shard) if row["row"] == error.row)
