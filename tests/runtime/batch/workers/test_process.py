"""A worker as a process: how often it may die while it opens the model, and how its errors go out."""

import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from console.errors import InputError
from runtime.batch.storage import Storage
from runtime.batch.workers.process import LINES, done_of, open_worker
from runtime.batch.workers.worker import Done

from ..answers import job_of, planned, rows_of


@pytest.fixture
def job(exported, tmp_path):
    (tmp_path / "scans").mkdir()
    Image.new("RGB", (60, 40), "white").save(tmp_path / "scans" / "a.png")
    return job_of(exported("fp16"), tmp_path / "scans", tmp_path / "answers")


def test_a_worker_that_has_started_leaves_nothing(job):
    worker = open_worker(job, "run", "a")
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
        process = multiprocessing.get_context("fork").Process(target=partial(open_worker, deadly, "run", "a"))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert job.output.read("unfinished/worker-a") == str(deaths).encode()
    with pytest.raises(InputError, match=r"^3 processes died while they opened model; it may need more memory$"):
        open_worker(deadly, "run", "a")
    open_worker(job, "run", "b").close()
    assert job.output.names("unfinished") == []


def test_a_model_that_is_refused_is_no_death(job, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_worker(replace(job, model=Storage.at(tmp_path / "none")), "run", "a")
    assert job.output.names("unfinished") == []


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
