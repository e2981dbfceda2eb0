"""Output files, one for each shard: written at once, and read back."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.batch.storage import Storage

FOLDER = "pages"
PARQUET, JSONL = "parquet", "jsonl"


@dataclass(frozen=True)
class ShardFiles:
    """The files of one run, all of one form."""

    storage: Storage
    """The output."""
    schema: pa.Schema
    """Columns."""
    form: str
    """PARQUET or JSONL."""

    def name(self, number: int) -> str:
        """Name of a shard's file; sorted, they have the order of the source."""
        return f"{FOLDER}/{number:06}.{self.form}"

    def finished(self) -> set[int]:
        """Numbers of the shards that are written."""
        pattern = re.compile(rf"(\d{{6,}})\.{self.form}")
        matches = map(pattern.fullmatch, self.storage.names(FOLDER))
        return {int(match[1]) for match in matches if match}

    def write(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows of a shard. Raises InputError where they cannot be, as on a full disk."""
        self.storage.write(self.name(number), self._parquet(rows) if self.form == PARQUET else self._jsonl(rows))

    def read(self, number: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a shard, with all columns or some. Raises InputError where the file is damaged."""
        return self._rows(number, self.storage.read(self.name(number)), columns)

    def find(self, number: int) -> list[dict[str, Any]]:
        """The rows of a shard; none where it is not written."""
        content = self.storage.find(self.name(number))
        return [] if content is None else self._rows(number, content, None)

    def _rows(self, number: int, content: bytes, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        names = list(self.schema.names if columns is None else columns)
        try:
            if self.form == PARQUET:
                # A thread of PyArrow that frees a buffer while the process ends aborts it: none reads, nor reads ahead.
                file = pq.ParquetFile(io.BytesIO(content), pre_buffer=False)
                return list(file.read(names, use_threads=False).select(names).to_pylist())
            rows = [json.loads(line) for line in content.decode().split("\n") if line]
            return [{name: row[name] for name in names} for row in rows]
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            reason = str(error).partition("\n")[0]
            place = f"{self.storage.url}/{self.name(number)}"
            raise InputError(f"{place}: is damaged ({reason}); delete it, and run the same command again") from error

    def _parquet(self, rows: Sequence[dict[str, Any]]) -> bytes:
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), self.schema), file, compression="zstd")
        return file.getvalue()

    def _jsonl(self, rows: Sequence[dict[str, Any]]) -> bytes:
        lines = ({name: row[name] for name in self.schema.names} for row in rows)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
