"""What a worker does with what dead ones have left: pages that kill are given up, all others are answered."""

import json
import threading
import time
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest

from console.errors import InputError
from runtime.batch.output.journal import Attempt
from runtime.batch.source.folder import Folder
from runtime.batch.workers.worker import Done, Worker

from ..answers import job_of, planned, rows_of, work
from ..asked import asked, assert_answered, drawn


def test_a_journal_that_a_dead_worker_left_is_deleted_and_not_held_against_a_retry(exported, scans, tmp_path):
    """It died after the shard was written, and before it could end the journal."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    work(job)
    Attempt.begin(job.output, 0, "run").note(0, alone=True)
    assert [done.answered for done in work(job, "run")] == [0]
    assert job.output.names("unfinished") == []


def test_workers_that_die_while_they_read_a_shard_or_write_it_end_the_run(exported, scans, tmp_path):
    """No page of it is to blame, so nothing else would end it."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    for _ in range(3):
        Attempt.begin(job.output, 0, "run").handle(now=True)
    with pytest.raises(InputError, match=r"^3 workers died while pages for pages/000000\.parquet were read, or"):
        work(job, "run")
    assert [done.answered for done in work(job, "another")] == [6]


def test_a_page_that_kills_its_worker_has_an_error_and_others_are_answered(exported, reader, scans, pictures, tmp_path):
    """What a worker leaves that dies of row 2: noted at the second start, it is answered alone from the third on."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    (shard,) = planned(job)
    for start in (1, 2, 3, 4):
        attempt = Attempt.begin(job.output, shard.number, "run")
        assert (attempt.notes, attempt.one_by_one) == (start >= 2, False)
        assert attempt.suspects == ([2] if start >= 3 else [])
        if attempt.notes:
            attempt.note(2, alone=2 in attempt.suspects)
    (done,) = work(job)
    rows = rows_of(job)
    assert done == Done(0, 6, 2, rows[0]["error"], starts=5)
    assert rows[2]["error"] == "its worker died, or was stuck, 2 times while this page alone was answered"
    assert (rows[2]["document"], rows[2]["answer"]) == ("more/c.png", None)
    assert_answered(rows[1], asked(reader, [pictures[0]]))
    for row, image in zip(rows[3:], drawn(scans / "more" / "d.pdf"), strict=True):
        assert_answered(row, asked(reader, [image]))
    assert {row["attempts"] for row in rows} == {5}
    assert job.output.names("unfinished") == []


class Late(Folder):
    """A folder on a server that does not answer for a while."""

    answers: ClassVar = threading.Event()

    def pages(self, part):
        for page in super().pages(part):
            yield replace(page, pictures=partial(self._late, page)) if page.document == "b.png" else page

    def _late(self, page):
        self.answers.wait(30)
        yield from page.pictures()


def test_pages_are_noted_while_they_are_opened(exported, reader, pictures, tmp_path, monkeypatch):
    """From the second start on. While nothing comes, the worker is stuck with the row in hand."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, picture in zip(("a.png", "b.png"), pictures, strict=False):
        picture.save(scans / name)
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    job = replace(job, source=Late(job.source.storage, None, per_document=False))
    (shard,) = planned(job)
    Attempt.begin(job.output, shard.number, "run")
    worker = Worker(job, "run")
    assert worker.stuck is None
    answering = threading.Thread(target=worker.answer, args=[shard])
    answering.start()
    journal, deadline = tmp_path / "answers" / "unfinished" / "000000.json", time.monotonic() + 30
    while not (journal.exists() and json.loads(journal.read_text())["noted"] == [1, False]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    with monkeypatch.context() as patched:
        patched.setattr("runtime.batch.workers.worker.LONGEST_OPENING", 0.05)
        assert worker.stuck == "b.png was opened for more than 0.05 seconds"
    Late.answers.set()
    answering.join(30)
    worker.close()
    monkeypatch.setattr("runtime.batch.workers.worker.LONGEST_OPENING", 0.0)
    assert worker.stuck is None
    for row, picture in zip(rows_of(job), pictures, strict=False):
        assert_answered(row, asked(reader, [picture]))


@pytest.mark.parametrize("died", [1, 6])
def test_pages_of_workers_that_died_are_answered_alone_at_last(died, exported, reader, scans, pictures, tmp_path):
    """With the same answers, whatever was noted once."""
    job = job_of(exported("fp16"), scans, tmp_path / "answers")
    (shard,) = planned(job)
    for _ in range(died):
        attempt = Attempt.begin(job.output, shard.number, "run")
    attempt.note(1)
    work(job)
    rows = rows_of(job)
    assert_answered(rows[1], asked(reader, [pictures[0]]))
    for row, image in zip(rows[3:], drawn(scans / "more" / "d.pdf"), strict=True):
        assert_answered(row, asked(reader, [image]))
