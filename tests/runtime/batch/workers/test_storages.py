"""Inputs and outputs that fail: no page is to blame."""

import threading
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from console.errors import InputError
from runtime.batch.source.folder import Folder
from runtime.batch.storage import Storage
from runtime.batch.storage_error import StorageError
from runtime.batch.workers.worker import Worker

from ..answers import job_of, planned, rows_of, work


@dataclass(frozen=True)
class Restarted(Storage):
    """A server that refuses the next writes, and then takes them."""

    refuses: ClassVar = 0

    def write(self, name, content):
        if name.startswith("pages/") and Restarted.refuses:
            Restarted.refuses -= 1
            raise StorageError(f"{name}: cannot be written")
        super().write(name, content)


@pytest.mark.parametrize("refuses", [2, 3])
def test_answers_are_written_again_where_a_storage_fails_for_a_moment(refuses, exported, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.batch.storage_error.WAITS", (0.01, 0.01))
    job = job_of(exported("fp16"), scans / "b.png", tmp_path / "answers")
    job = replace(job, output=Restarted(job.output.url))
    monkeypatch.setattr(Restarted, "refuses", refuses)
    if refuses == 2:
        assert [done.starts for done in work(job)] == [1]
    else:
        with pytest.raises(InputError, match="cannot be written"):
            work(job)


def test_an_output_that_cannot_be_written_keeps_what_is_and_the_rest_is_answered_later(
    small_shards, exported, scans, tmp_path, monkeypatch
):
    """The folder of the files is not there for a while."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    worker = Worker(job, "run")
    first, second, *_ = planned(job)
    worker.answer(first)
    pages = tmp_path / "answers" / "pages"
    pages.rename(tmp_path / "aside")
    monkeypatch.setattr("runtime.batch.storage_error.WAITS", (0.01, 0.01))
    with pytest.raises(InputError, match=r"000001\.parquet: cannot be written"):
        worker.answer(second)
    worker.close()
    (tmp_path / "aside").rename(pages)
    assert job.output.names("pages") == ["000000.parquet"]
    assert job.output.names("unfinished") == ["000001.json"]
    assert sum(done.answered for done in work(job, "again")) == 4
    assert [row["row"] for row in rows_of(job)] == list(range(6))
    assert [row["attempts"] for row in rows_of(job)] == [1, 1, 2, 1, 1, 1]


class Failing(Folder):
    """Pages at a place that cannot be reached for some of the times that it is asked."""

    fails: ClassVar[set[int]] = set()
    asked: ClassVar[list[str]] = []

    def _image(self, name):
        self.asked.append(name)
        if len(self.asked) - 1 in self.fails:
            raise StorageError(f"{name}: cannot be read (no network)")
        return super()._image(name)


@pytest.fixture
def failing(exported, pictures, tmp_path, monkeypatch):
    """A job of five pictures, and what it asks."""
    monkeypatch.setattr("runtime.batch.storage_error.WAITS", (0.01, 0.01))
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(5):
        pictures[0].save(scans / f"{number}.png")
    monkeypatch.setattr(Failing, "asked", [])
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    return replace(job, source=Failing(job.source.storage, None, per_document=False))


def test_a_page_is_asked_for_again(failing, monkeypatch):
    monkeypatch.setattr(Failing, "fails", {0, 1})
    assert [done.errors for done in work(failing, at_once=1)] == [0]
    assert Failing.asked == ["0.png"] * 3 + [f"{number}.png" for number in range(1, 5)]


def test_some_pages_that_cannot_be_read_are_errors_and_three_in_a_row_end_the_run(failing, monkeypatch):
    """A million rows with the error of a network would say that all is done."""
    monkeypatch.setattr(Failing, "fails", {*range(6), *range(7, 13)})  # two pages, then one is read
    assert [done.errors for done in work(failing, at_once=1)] == [4]
    errors = [row["error"] for row in rows_of(failing)]
    assert errors == [f"{n}.png: cannot be read (no network)" if n != 2 else None for n in range(5)]
    monkeypatch.setattr(Failing, "asked", [])
    monkeypatch.setattr(Failing, "fails", {*range(9)})
    failing.output.delete("pages/000000.parquet")
    with pytest.raises(StorageError, match=r"^2\.png: cannot be read \(no network\)$"):
        work(failing, "again", at_once=1)
    assert failing.output.names("pages") == []


class Slow(Folder):
    """Counts who opens pictures at the same time."""

    inside: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def _image(self, name):
        Slow.inside += 1
        Slow.most = max(Slow.most, Slow.inside)
        time.sleep(0.01)
        Slow.inside -= 1
        return super()._image(name)


def test_pages_are_opened_one_after_another(small_shards, exported, pictures, tmp_path):
    """Neither PDFium nor Python's warnings may be used by two threads."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(12):
        pictures[0].save(scans / f"{number:02}.png")
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    job = replace(job, source=Slow(job.source.storage, None, per_document=False))
    assert sum(done.answered for done in work(job, at_once=4)) == 12
    assert Slow.most == 1


class Hanging(Folder):
    """A source that does not answer."""

    answers: ClassVar = threading.Event()

    def pages(self, part):
        self.answers.wait(30)
        return super().pages(part)


def test_an_access_that_does_not_end_is_seen(exported, pictures, tmp_path, monkeypatch):
    scans = tmp_path / "scans"
    scans.mkdir()
    pictures[0].save(scans / "a.png")
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    job = replace(job, source=Hanging(job.source.storage, None, per_document=False))
    worker = Worker(job, "run")
    answering = threading.Thread(target=worker.answer, args=[planned(job)[0]])
    answering.start()
    time.sleep(0.2)
    assert worker.stuck is None
    monkeypatch.setattr("runtime.batch.workers.worker.LONGEST_WAIT", 0.1)
    assert worker.stuck == "pages were read from the input, or answers written, for more than 0.1 seconds"
    Hanging.answers.set()
    answering.join(30)
    worker.close()
    assert worker.stuck is None
    assert len(rows_of(job)) == 1
