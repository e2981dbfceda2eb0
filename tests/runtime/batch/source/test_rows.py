"""Rows of Parquet files in any order of parts, and what reading them costs."""

import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.batch.source.rows import DamagedError, Rows
from runtime.batch.storage import Storage

from ..counting import counted

PART = 16


def stored(url, rows, group, *, bytes_each=0) -> Storage:
    noise = np.random.default_rng(0)
    columns = {"number": range(rows), "content": pa.array([noise.bytes(bytes_each) for _ in range(rows)], pa.binary())}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group, compression="none", write_batch_size=16)
    storage = Storage(url)
    storage.write("", file.getvalue())
    return storage


def numbers(read) -> list[int]:
    assert all(row.num_rows == 1 for row in read)
    return [row.column("number")[0].as_py() for row in read]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(1, 150),
    group=st.integers(1, 60),
    reads=st.lists(st.tuples(st.integers(0, 170), st.integers(1, 40)), max_size=30),
)
def test_any_rows_in_any_order(rows, group, reads):
    storage, reader = stored("memory://any.parquet", rows, group), Rows({"number"})
    for first, count in reads:
        found = numbers(reader.read(storage, "", first, count))
        assert found == list(range(rows))[first : first + count]


class OneReader(MemoryFileSystem):
    """Files that two threads may not read at the same time: neither are positions of a Parquet file made for it."""

    protocol = "onereader"
    inside: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return _Watched(file.getvalue()) if mode == "rb" else file


class _Watched(MemoryFile):
    def __init__(self, content):
        super().__init__(None, None, content)

    def read(self, size=-1, /):
        OneReader.inside += 1
        OneReader.most = max(OneReader.most, OneReader.inside)
        time.sleep(0.002)
        OneReader.inside -= 1
        return super().read(size)


fsspec.register_implementation("onereader", OneReader, clobber=True)


def test_threads_read_one_after_another():
    storage, reader = stored("onereader://threads.parquet", 640, 200), Rows({"number"})
    parts = list(range(0, 640, PART))
    random.Random(0).shuffle(parts)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda first: numbers(reader.read(storage, "", first, PART)), parts))
    assert found == [list(range(first, first + PART)) for first in parts]
    assert OneReader.most == 1


ORDERS = {
    "one worker": lambda parts: parts,
    "one of eight": lambda parts: parts[3::8],
    "not quite in order": lambda parts: [parts[place ^ 3] for place in range(len(parts))],
}


@pytest.mark.parametrize("order", ORDERS)
def test_parts_of_a_row_group_go_on_where_others_ended(order):
    """A row group has no index: from its start for each part would be 32 times the file."""
    storage, reader = stored("counting://big.parquet", 64 * PART, 64 * PART, bytes_each=20_000), Rows({"content"})
    parts = ORDERS[order](range(0, 64 * PART, PART))
    size = storage.size()
    requests, count = counted(lambda: [reader.read(storage, "", first, PART) for first in parts])
    assert 0.8 * size < count < (1.1 if order != "not quite in order" else 4.1) * size
    assert requests["info"] <= len(parts) + 4
    assert requests["open rb"] <= 4


def test_a_part_reads_what_is_before_it_in_its_row_group_and_little_more():
    storage = stored("counting://long.parquet", 3000, 1000, bytes_each=20_000)
    _, count = counted(lambda: numbers(Rows({"number", "content"}).read(storage, "", 1000, PART)))
    assert count < 2 * (4 << 20) + (1 << 20)  # a buffer for each column, and the end of the file


def test_a_file_that_was_replaced_is_read_anew():
    reader = Rows({"number"})
    assert numbers(reader.read(stored("memory://new.parquet", 50, 50), "", 0, 16)) == list(range(16))
    assert numbers(reader.read(stored("memory://new.parquet", 20, 50), "", 16, 16)) == [16, 17, 18, 19]


class Failing(MemoryFileSystem):
    """Fails while a file is read, after its end was."""

    protocol = "failing"
    error: ClassVar[Exception | None] = None

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return _Failing(None, None, file.getvalue()) if mode == "rb" else file


class _Failing(MemoryFile):
    def read(self, size=-1, /):
        if Failing.error is not None and self.tell() < 10_000:
            raise Failing.error
        return super().read(size)


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.mark.parametrize(
    "error", [TimeoutError(), OSError(5, "Input/output error"), ConnectionResetError(), RuntimeError("no token")]
)
def test_a_network_that_fails_is_no_damage(error, monkeypatch):
    """Else pages would have errors that the next run need not have."""
    storage, reader = stored("failing://a.parquet", 64, 64, bytes_each=10_000), Rows({"number", "content"})
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(InputError, match=r"^failing://a\.parquet: cannot be read \(") as caught:
        reader.read(storage, "", 0, 16)
    assert not isinstance(caught.value, DamagedError)
    monkeypatch.setattr(Failing, "error", None)
    assert numbers(reader.read(storage, "", 0, 16)) == list(range(16))


def test_only_some_files_stay_open(tmp_path):
    reader = Rows({"number"})
    table = pa.table({"number": range(40)})
    for number in range(9):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        assert len(numbers(reader.read(Storage.at(tmp_path), f"{number}.parquet", 0, 16))) == 16
    held = [file.path for file in psutil.Process().open_files() if str(tmp_path) in file.path]
    assert len(held) <= 4
    for number in range(9):
        assert len(numbers(reader.read(Storage.at(tmp_path), f"{number}.parquet", 16, 32))) == 24
    assert not [file.path for file in psutil.Process().open_files() if str(tmp_path) in file.path]


def test_damage_is_told_from_a_storage_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"number": range(40)}), path)
    reader, storage = Rows({"number"}), Storage.at(path)
    path.write_bytes(path.read_bytes()[:-9])
    rows = reader.read(storage, "", 0, 16)
    assert len(rows) == 16
    assert all(isinstance(row, DamagedError) for row in rows)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)$"):
        reader.read(storage, "", 0, 16)
