"""A worker as a process: how often it may die while it opens the model, and how its errors go out."""

import json
import multiprocessing
import os
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
from PIL import Image

from console.errors import InputError
from runtime.batch.storage import Storage
from runtime.batch.workers.life import Life
from runtime.batch.workers.process import LINES, Process, done_of, open_worker
from runtime.batch.workers.worker import Done

from ..answers import job_of, planned, rows_of


@pytest.fixture
def job(exported, tmp_path):
    (tmp_path / "scans").mkdir()
    Image.new("RGB", (60, 40), "white").save(tmp_path / "scans" / "a.png")
    return job_of(exported("fp16"), tmp_path / "scans", tmp_path / "answers")


def opened(job, name):
    """A worker as its process opens it."""
    return open_worker(job, "run", Life.begin(job.output, name))


def test_a_worker_that_has_started_leaves_nothing(job):
    worker = opened(job, "a")
    assert job.output.names("unfinished") == []
    assert worker.answer(planned(job)[0]) == Done(0, 1, 0, None, 1)
    worker.close()
    assert len(rows_of(job)) == 1


class Deadly(Storage):
    """A place that kills whoever looks for a model in it, as too little memory does."""

    @property
    def folder(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_third_death_while_the_model_is_opened_is_the_last(job):
    """Ray starts a new process for the same worker, for ever, and says nothing."""
    deadly = replace(job, model=Deadly("model"))
    for deaths in (1, 2, 3):
        process = multiprocessing.get_context("fork").Process(target=partial(opened, deadly, "a"))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert json.loads(job.output.read("unfinished/worker-a.json")) == {"openings": deaths}
    with pytest.raises(InputError, match=r"^3 processes died while they opened model; it may need more memory$"):
        opened(deadly, "a")
    opened(job, "b").close()
    assert job.output.names("unfinished") == []


def test_a_model_that_is_refused_is_no_death(job, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        opened(replace(job, model=Storage.at(tmp_path / "none")), "a")
    assert job.output.names("unfinished") == []


def test_why_a_worker_gave_up_is_said_by_its_next_process(job, capsys):
    """Nobody reads what Ray's processes print."""

    def give_up():
        Life.begin(job.output, "a").give_up("a page was opened for too long")

    process = multiprocessing.get_context("fork").Process(target=give_up)
    process.start()
    process.join(60)
    assert process.exitcode == 1
    capsys.readouterr()
    opened(job, "a").close()
    assert capsys.readouterr().err == "a worker has started anew: a page was opened for too long\n"
    assert job.output.names("unfinished") == []


def test_threads_take_each_line_once():
    """Shards that end together are reported by several threads."""
    process = Process.__new__(Process)
    process._said = deque(range(20_000))
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda _: list(process._taken()), range(8)))
    assert sorted(chain.from_iterable(taken)) == list(range(20_000))


def test_what_workers_say_is_said_once_and_no_endless_list(capsys):
    fields, said = {"number": 3, "answered": 2, "errors": 1, "error": "a.png: is no image", "starts": 1}, set()
    for lines in ("a font is missing\nanother line", "another line"):
        assert done_of({**fields, "said": lines, "problem": None}, said) == Done(**fields)
    assert capsys.readouterr().err.splitlines() == ["a font is missing", "another line"]
    for number in range(LINES):
        done_of({**fields, "said": f"{number}.pdf lacks a font", "problem": None}, said)
    *shown, last = capsys.readouterr().err.splitlines()
    assert shown == [f"{number}.pdf lacks a font" for number in range(LINES - 2)]
    assert last == "workers may say more, which is not shown"
    with pytest.raises(InputError, match=r"^gpu-7: a problem$"):
        done_of({**fields, "said": "", "problem": "gpu-7: a problem"}, said)
