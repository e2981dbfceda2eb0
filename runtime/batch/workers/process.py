"""A worker as a process of Ray's.

What goes wrong in it goes out as one line: Ray would wrap it in tracebacks. It ends where only a new process can go on.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from console.errors import InputError
from console.progress import hear, say
from runtime.batch.output.journal import FAILURES
from runtime.batch.output.journal import FOLDER as UNFINISHED
from runtime.batch.plan import Planned
from runtime.batch.workers.answering import BrokenEngineError
from runtime.batch.workers.worker import Done, Worker

if TYPE_CHECKING:
    from runtime.batch.job import Job

OPENING = "worker-"
"""Names of files in which workers count how often they opened the model begin with this."""
LINES = 20
"""Most lines of workers that a run shows."""
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h


class Process:
    """A worker as Ray Data calls it, from several threads: a row with a shard's place in, a row of counts out."""

    def __init__(self, job: Job, run: str, named: bool) -> None:
        """Open the model. run: names this run in the journal. named: errors name the machine."""
        import ray

        _return_freed_memory()
        self._named, self._said = named, deque[str](maxlen=LINES)
        hear(self._said.append)
        self._worker: Worker | str
        try:
            self._worker = open_worker(job, run, ray.get_runtime_context().get_actor_id())
            threading.Thread(target=_watch, args=[self._worker], daemon=True).start()
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
            _give_up(f"the engine has failed: {error}")
        except Exception as error:
            problem = _line(error)
        if problem is not None and self._named:
            problem = f"{socket.gethostname()}: {problem}"
        said = [self._said.popleft() for _ in range(len(self._said))]
        return {**asdict(done), "said": "\n".join(said), "problem": problem}


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


def open_worker(job: Job, run: str, name: str) -> Worker:
    """Open the model. name: of the worker, the same in each process that Ray starts for it.

    Raises InputError as `Worker` does, and where processes of the worker have died in here: Ray would start them for
    ever.
    """
    output, file = job.output, f"{UNFINISHED}/{OPENING}{name}"
    deaths = int(output.find(file) or 0)
    if deaths >= FAILURES:
        output.delete(file)
        raise InputError(f"{deaths} processes died while they opened {job.model.url}; it may need more memory")
    output.write(file, str(deaths + 1).encode())
    try:
        return Worker(job, run)
    finally:
        output.delete(file)


def _return_freed_memory() -> None:
    """Have glibc return what images took: it keeps an arena for each thread, and maps ever larger pieces in them."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _line(error: Exception) -> str:
    """What is wrong; of a fault of this program also where."""
    if isinstance(error, InputError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {error}"


def _watch(worker: Worker) -> NoReturn:
    while (why := worker.stuck) is None:
        time.sleep(1)
    _give_up(why)


def _give_up(why: str) -> NoReturn:
    """End this process: Ray starts a new one, and gives it the same shards."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(1)
