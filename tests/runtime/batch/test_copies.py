"""Local copies of files at URLs: few, up to date, and none of processes that have ended."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from console.errors import InputError
from runtime.batch import copies
from runtime.batch.storage import Storage


def test_copies_do_not_fill_the_disk(tmp_path):
    """The last that were used stay; a copy is made once."""
    storage = Storage(f"memory://{tmp_path}/data")
    count = copies.FILES + 2
    for number in range(count):
        storage.write(f"{number}.pdf", b"%d" % number)
    first, *others = [storage.local(f"{number}.pdf") for number in range(count - 2)]
    assert storage.local("0.pdf") == first
    latest = [storage.local(f"{number}.pdf") for number in (count - 2, count - 1)]
    assert [path.exists() for path in (first, *others, *latest)] == [True, False, False] + [True] * (count - 3)
    assert [path.read_bytes() for path in (first, *latest)] == [b"0", b"%d" % (count - 2), b"%d" % (count - 1)]
    assert storage.local("1.pdf").read_bytes() == b"1"


def test_a_file_that_has_changed_is_copied_again(tmp_path):
    """A process may begin a run again where another was deleted: it would read that one's plan."""
    storage = Storage(f"memory://{tmp_path}/data")
    for content in (b"old", b"new"):
        storage.write("plan.jsonl", content)
        assert storage.local("plan.jsonl").read_bytes() == content


def test_threads_that_want_the_same_file_make_one_copy(tmp_path):
    """Each would else have its own, and the first ones would stay for ever."""
    made, local = [], copies.LocalCopies()

    def copy(path):
        made.append(path)
        time.sleep(0.02)
        path.write_bytes(b"content")

    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(lambda _: local.get(("a.pdf", "1"), "a.pdf", copy), range(8)))
    assert len(made) == 1
    assert paths == set(made)


def test_copies_are_bounded_by_their_bytes(tmp_path, monkeypatch):
    """The newest stays, however large it is: it is about to be opened."""
    monkeypatch.setattr(copies, "BYTES", 2500)
    storage = Storage(f"memory://{tmp_path}/data")
    paths = []
    for number, size in enumerate((1000, 1000, 1000, 5000, 100)):
        storage.write(f"{number}.pdf", bytes(size))
        paths.append(storage.local(f"{number}.pdf"))
        kept = [len(path.read_bytes()) for path in paths if path.exists()]
        assert kept == [[1000], [1000] * 2, [1000] * 2, [5000], [100]][number]


MADE = """
import os, sys
from runtime.batch.storage import Storage
Storage("memory://data").write("a.pdf", b"1")
print(Storage("memory://data").local("a.pdf"), flush=True)
sys.stdin.read()
os._exit(0) if sys.argv[1] == "kill" else None
"""


def test_copies_of_a_killed_process_are_deleted_by_the_next_and_those_of_living_ones_stay(tmp_path):
    def start(end):
        process = subprocess.Popen(
            [sys.executable, "-c", MADE, end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        return process, process.stdout.readline().strip()

    def end(process):
        process.communicate()
        assert process.returncode == 0

    (tmp_path / "exaone-docvlm-mine").mkdir()  # of nobody who holds it
    killed, left = start("kill")
    living, kept = start("kill")
    end(killed)
    assert Path(left).exists()
    third, own = start("end")
    assert [Path(path).exists() for path in (left, kept, own)] == [False, True, True]
    end(third)
    end(living)
    assert [Path(path).exists() for path in (kept, own)] == [True, False]
    assert len(list(tmp_path.iterdir())) == 3  # that folder, and the last one with its lock


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError) as caught:
        copies.LocalCopies().get(("a.pdf",), "a.pdf", lambda path: None)
    assert str(caught.value).startswith("a temporary folder cannot be made (")
    assert str(tmp_path / "file") in str(caught.value)
