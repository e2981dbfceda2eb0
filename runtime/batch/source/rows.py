"""Reads rows of Parquet files. A part goes on where one before it has ended."""

from __future__ import annotations

import threading
from bisect import bisect_right
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

    from runtime.batch.storage import Storage

_KEPT = 4  # cursors of a process: a worker reads as many shards at the same time, not always in their order
_BATCH = 16  # rows that are decoded at once
_BUFFER = 4 << 20  # bytes of a column that are read at once; without it, all of a row group


class DamagedError(InputError):
    """The content of a file is no valid Parquet."""


@contextmanager
def opened(storage: Storage, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises DamagedError for its content, and InputError where the storage cannot read it."""
    with storage.opened(name) as content:
        try:
            # Not `pre_buffer`, which reads a whole row group ahead, in a thread that may abort the process at its end.
            with pq.ParquetFile(content, pre_buffer=False, buffer_size=_BUFFER) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # of the file system, as time-outs are; Arrow's own have neither class nor number
            reason = str(error).partition("\n")[0]
            raise DamagedError(f"{storage.place(name)}: cannot be read as Parquet ({reason})") from error


class Rows:
    """Rows of files, for several threads.

    Parquet has no way to a row but from the start of its row group, so the places where reading ended are kept.
    """

    def __init__(self, columns: Collection[str]) -> None:
        """columns: names of those that are read, where a file has them."""
        self._columns, self._mutex = columns, threading.Lock()
        self._cursors: list[_Cursor] = []  # the latest used is the last

    def read(self, storage: Storage, name: str, first: int, count: int) -> list[pa.RecordBatch | DamagedError]:
        """Rows from `first` on, each for itself, while the file has any; an error for what cannot be decoded.

        Raises InputError where the storage cannot read the file.
        """
        file, stop = (storage.url, name, storage.version(name)), first + count
        found: list[pa.RecordBatch | DamagedError] = []
        with self._mutex:
            while (at := first + len(found)) < stop:
                cursor = self._take(file, at) or _Cursor(file, storage, self._columns, at)
                try:
                    for row in cursor.rows(at, stop):
                        found.append(row)  # noqa: PERF402 - those before an error are kept
                except DamagedError as error:  # other row groups may be whole
                    at = first + len(found)
                    found += [error] * (min(stop, cursor.group_end(at, stop)) - at)
                else:
                    self._keep(cursor)
                    break
        return found

    def _take(self, file: tuple[str, str, str], first: int) -> _Cursor | None:
        """The kept cursor that is next before a row, unless the start of its row group is nearer."""
        found = [cursor for cursor in self._cursors if cursor.file == file and cursor.is_before(first)]
        if not found:
            return None
        cursor = max(found, key=lambda cursor: cursor.at)
        self._cursors.remove(cursor)
        return cursor

    def _keep(self, cursor: _Cursor) -> None:
        self._cursors.append(cursor)
        if cursor.at >= cursor.starts[-1]:
            self._cursors.pop().close()
        elif len(self._cursors) > _KEPT:
            self._cursors.pop(0).close()


class _Cursor:
    """A place in a file."""

    def __init__(self, file: tuple[str, str, str], storage: Storage, columns: Collection[str], first: int) -> None:
        """Where the row group starts that has a row."""
        self.file, self.at = file, first
        self.starts: list[int] = []
        """Rows at which row groups start, and their number; none before any were read."""
        self._batches = self._read(storage, columns, first)
        self._rest: pa.RecordBatch | None = None

    def is_before(self, row: int) -> bool:
        """Whether the shortest way to a row is from here."""
        return self.starts[bisect_right(self.starts, row) - 1] <= self.at <= row

    def group_end(self, row: int, unknown: int) -> int:
        """Where the row group ends that has a row."""
        return next((start for start in self.starts if start > row), unknown)

    def rows(self, first: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Pass over rows until the first, then yield each for itself, while there are any."""
        while self.at < stop:
            if not self._rest:
                self._rest = next(self._batches, None)  # from the file's first read on, `at` is where that begins
                if self._rest is None:
                    return
            count = min(stop - self.at, self._rest.num_rows)
            yield from (self._rest.slice(row, 1) for row in range(max(0, first - self.at), count))
            self.at, self._rest = self.at + count, self._rest.slice(count)

    def close(self) -> None:
        """Close the file."""
        self._batches.close()

    def _read(self, storage: Storage, columns: Collection[str], first: int) -> Generator[pa.RecordBatch, None, None]:
        with opened(storage, self.file[1]) as file:
            groups = range(file.num_row_groups)
            self.starts = list(accumulate((file.metadata.row_group(group).num_rows for group in groups), initial=0))
            group = bisect_right(self.starts, first) - 1
            self.at = self.starts[group]
            names = [name for name in file.schema_arrow.names if name in columns]
            for one in groups[group:]:  # each for itself: a batch of two would be lost with either
                yield from file.iter_batches(_BATCH, row_groups=[one], columns=names, use_threads=False)
