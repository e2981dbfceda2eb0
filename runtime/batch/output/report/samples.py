"""Some rows to look at: the first, the last, and one of each frequent error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.batch.output.shards import ShardFiles
    from runtime.batch.output.summary import Summary

ENDS, ERRORS = 2, 4  # rows from each end, and with an error


@dataclass(frozen=True)
class Sample:
    """A row, and why it is shown."""

    reason: str
    """"first", "last" or "error"."""
    row: dict[str, Any]
    """All its columns."""


def samples(files: ShardFiles, shards: Sequence[int], summary: Summary) -> list[Sample]:
    """Read them, a few shards at most. No row is there twice. shards: numbers of all, in their order."""
    chosen: dict[int, Sample] = {}
    first, last = files.read(shards[0]), files.read(shards[-1])
    for reason, rows in (("first", first[:ENDS]), ("last", last[-ENDS:])):
        for row in rows:
            chosen.setdefault(row["row"], Sample(reason, row))
    for error in summary.errors[:ERRORS]:
        if error.row not in chosen:
            (row,) = (row for row in files.read(error.shard) if row["row"] == error.row)
            chosen[error.row] = Sample("error", row)
    return list(chosen.values())
