"""A worker as a process of Ray's.

What goes wrong in it goes out as one line: Ray would wrap it in tracebacks. It ends where only a new process can go on.
"""

from __future__ import annotations

import ctypes
import socket
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from console.errors import InputError
from console.progress import hear, say
from runtime.batch.output.journal import FAILURES
from runtime.batch.plan import Planned
from runtime.batch.workers.answering import BrokenEngineError
from runtime.batch.workers.life import Life
from runtime.batch.workers.worker import Done, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.batch.job import Job

LINES = 20
"""Most lines of workers that a run shows."""
_SWITCH_SECONDS = 0.0005  # 5 ms by default
_M_ARENA_MAX = -8  # malloc.h


class Process:
    """A worker as Ray Data calls it, from several threads: a row with a shard's place in, a row of counts out."""

    def __init__(self, job: Job, run: str, named: bool) -> None:
        """Open the model. run: names this run in the journal. named: errors name the machine."""
        import ray

        _share_with_the_engine()
        self._named, self._said = named, deque[str](maxlen=LINES)
        hear(self._said.append)
        self._worker: Worker | str
        try:
            self._life = Life.begin(job.output, ray.get_runtime_context().get_actor_id())
            self._worker = open_worker(job, run, self._life)
            threading.Thread(target=self._watch, args=[self._worker], daemon=True).start()
        except Exception as error:
            self._worker = _line(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a shard. row: fields of Planned. Returns what `done_of` reads."""
        done, problem = Done(row["number"], 0, 0, None, 0), None
        try:
            if isinstance(self._worker, str):
                problem = self._worker
            else:
                done = self._worker.answer(Planned(**row))
        except BrokenEngineError as error:
            self._life.give_up(f"the engine has failed: {error}")
        except Exception as error:
            problem = _line(error)
        if problem is not None and self._named:
            problem = f"{socket.gethostname()}: {problem}"
        return {**asdict(done), "said": "\n".join(self._taken()), "problem": problem}

    def _watch(self, worker: Worker) -> NoReturn:
        while (why := worker.stuck) is None:
            time.sleep(1)
        self._life.give_up(why)

    def _taken(self) -> Iterator[str]:
        """What was said since, which no other thread takes."""
        with suppress(IndexError):
            while True:
                yield self._said.popleft()


def done_of(row: dict[str, Any], said: set[str]) -> Done:
    """What a worker did. Raises InputError where it cannot go on.

    said: what workers have said until now; what is new is said here, up to LINES: a million PDFs may lack fonts.
    """
    lines, problem = row.pop("said"), row.pop("problem")
    for line in lines.splitlines():
        if line not in said and len(said) < LINES:
            said.add(line)
            say(line)
            if len(said) == LINES:
                say("workers may say more, which is not shown")
    if problem is not None:
        raise InputError(problem)
    return Done(**row)


def open_worker(job: Job, run: str, life: Life) -> Worker:
    """Open the model. Raises InputError as `Worker` does, and where processes of this worker have died in here."""
    if life.openings >= FAILURES:
        life.end()
        raise InputError(f"{life.openings} processes died while they opened {job.model.url}; it may need more memory")
    life.note_opening()
    try:
        return Worker(job, run)
    finally:
        life.end()


def _share_with_the_engine() -> None:
    """Have threads that open pages take little from the engine's one: neither memory nor time.

    glibc keeps an arena for each thread, with what its images took. A thread that needs Python's lock waits for the
    switch interval while another computes, and the engine needs it after each step.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)


def _line(error: Exception) -> str:
    """What is wrong; of a fault of this program also where."""
    if isinstance(error, InputError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {error}"
