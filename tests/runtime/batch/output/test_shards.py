"""Files of shards: read back equal, and one clear line where they are damaged."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.batch.output.columns import BASE
from runtime.batch.output.shards import ShardFiles
from runtime.batch.storage import Storage

FIELD = pa.field("items", pa.list_(pa.struct({"금액": pa.int64()})))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.string(): TEXT | st.sampled_from(["a\nb\r\n", "\x00", "\u2028", '"\\']),
    FIELD.type: st.lists(st.fixed_dictionaries({"금액": st.none() | st.integers(-9, 9)}), max_size=3),
}
SCHEMA = BASE.append(FIELD)
ROWS = st.lists(
    st.fixed_dictionaries(
        {field.name: st.none() | VALUES[field.type] if field.nullable else VALUES[field.type] for field in SCHEMA}
    ),
    min_size=1,
    max_size=8,
)


def files(storage, form) -> ShardFiles:
    storage.make_folder("pages")
    return ShardFiles(storage, SCHEMA, form)


def row(number):
    return dict.fromkeys(SCHEMA.names) | {"row": number, "document": "a.png", "prompt": "?", "attempts": 1}


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(rows=ROWS)
def test_rows_come_back_equal(form, rows):
    shards = files(Storage("memory:///shards"), form)
    shards.write(3, rows)
    assert shards.read(3) == rows
    some = ["error", "row", "items"]
    assert shards.read(3, some) == [{name: one[name] for name in some} for one in rows]


def test_others_read_the_files(tmp_path):
    rows = [row(number) | {"answer": "합계\n12,000원", "items": [{"금액": 12000}]} for number in range(3)]
    for form in ("parquet", "jsonl"):
        shards = files(Storage.at(tmp_path), form)
        shards.write(0, rows[:2])
        shards.write(1, rows[2:])
    assert pq.read_schema(tmp_path / "pages" / "000000.parquet").equals(SCHEMA)
    names = [f"pages/{number:06}.jsonl" for number in range(2)]
    lines = [line for name in names for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
    assert [json.loads(line) for line in lines] == rows
    assert "합계" in lines[0]
    read = pd.concat([pd.read_parquet(tmp_path / "pages" / f"{number:06}.parquet") for number in range(2)])
    assert read["answer"].tolist() == [one["answer"] for one in rows]
    assert read["row"].tolist() == [0, 1, 2]
    arrow = pd.read_parquet(tmp_path / "pages" / "000000.parquet", dtype_backend="pyarrow")
    assert {name: kind.pyarrow_dtype for name, kind in arrow.dtypes.items()} == dict(
        zip(SCHEMA.names, SCHEMA.types, strict=True)
    )
    assert arrow["items"].tolist() == [[{"금액": 12000}]] * 2


def test_only_whole_files_of_this_form_are_finished(tmp_path):
    storage = Storage.at(tmp_path)
    assert ShardFiles(storage, SCHEMA, "jsonl").finished() == set()
    jsonl, parquet = files(storage, "jsonl"), files(storage, "parquet")
    for number in (0, 7, 1_000_000):
        jsonl.write(number, [row(number)])
    parquet.write(2, [row(0)])
    for other in (".000003.jsonl.ab.partial", "000004.jsonl.bak", "notes.jsonl", "12.jsonl", "000005.jsonl~"):
        storage.write(f"pages/{other}", b"")
    assert jsonl.finished() == {0, 7, 1_000_000}
    assert parquet.finished() == {2}


DAMAGE = {
    "parquet": [b"", b"PAR1", b"PAR1" + b"\0" * 99 + b"PAR1", None],
    "jsonl": [b"{", b'{"row": 1, "docu', b"\xff\xfe\n", b"[1]\n", b"3\n", b'{"row": 1}\n', None],
}


@pytest.mark.parametrize("columns", [None, ["row", "error"]])
@pytest.mark.parametrize("form", DAMAGE)
def test_a_damaged_file_is_one_line(form, columns, tmp_path):
    shards = files(Storage.at(tmp_path), form)
    path = tmp_path / shards.name(5)
    for content in DAMAGE[form]:
        shards.write(5, [row(number) for number in range(20)])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
        with pytest.raises(InputError) as caught:
            shards.read(5, columns)
        assert str(caught.value).startswith(f"{path}: is damaged (")
        assert str(caught.value).endswith("); delete it, and run the same command again")
        assert "\n" not in str(caught.value)


def test_a_parquet_file_without_its_columns_is_damaged(tmp_path):
    shards = files(Storage.at(tmp_path), "parquet")
    pq.write_table(pa.table({"row": [1]}), tmp_path / shards.name(5))
    for columns in (None, ["row", "error"]):
        with pytest.raises(InputError, match="is damaged"):
            shards.read(5, columns)


READ = """
import os, sys
from runtime.batch.output.columns import BASE
from runtime.batch.output.shards import ShardFiles
from runtime.batch.source.table import Table
from runtime.batch.storage import Storage
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
ShardFiles(Storage(sys.argv[1]), BASE, "parquet").read(0)
table = Table(Storage(sys.argv[2]), None)
for listed in table.parts():
    list(table.pages(listed.part))
print(threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists threads there")
def test_no_thread_of_pyarrow_reads(tmp_path):
    """One that still freed a buffer when the process ended aborted it: a run with all its pages had exit code 134."""
    files = ShardFiles(Storage.at(tmp_path), BASE, "parquet")
    files.storage.make_folder("pages")
    files.write(0, [dict.fromkeys(BASE.names) | {"row": 0, "document": "a.png", "prompt": "?", "attempts": 1}])
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": [b"a"], "prompt": ["b"]}), table)
    done = subprocess.run([sys.executable, "-c", READ, tmp_path, table], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
