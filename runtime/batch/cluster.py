"""Ray: starts it here or joins a cluster, and has Ray Data give shards to workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from console.errors import InputError
from runtime.batch.plan import Planned
from runtime.batch.workers.answering import BrokenEngineError
from runtime.batch.workers.worker import AT_ONCE, LONGEST_OPENING, Done, Worker
from runtime.ort.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.batch.job import Job

_OBJECT_STORE = 256 << 20  # bytes; what goes through it are numbers of shards and counts
_LONGEST_CONNECTING = 10.0  # seconds


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at an address. Raises InputError where that is not possible."""
    if address is not None and address.startswith("ray://"):  # its client cannot run Ray Data
        raise InputError(f"--address {address}: Ray's client is not enough; run this on a node, with --address auto")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # of all systems: listen at 127.0.0.1 alone
    import ray
    from ray.data import DataContext
    from ray.exceptions import AuthenticationError

    here = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE, "num_cpus": os.cpu_count()}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with _quiet():
        try:
            _reach(address)
            options = {"log_to_driver": False, "logging_level": logging.CRITICAL, **({} if address else here)}
            with _own_sigterm():
                ray.init(address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError, OSError, AuthenticationError) as error:
            where = "on this machine" if address is None else f"at --address {address}"
            raise InputError(f"Ray cannot be used {where} ({str(error).partition(chr(10))[0]})") from error
        DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray would try for minutes."""
    host, found, port = (address or "").rpartition(":")
    if found:
        socket.create_connection((host.strip("[]"), int(port)), _LONGEST_CONNECTING).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's own ones exit with other codes, and say nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
    except SystemExit:  # it came meanwhile
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Ray prints, from C++ and from threads, next to what it raises. What Python writes to stderr is kept."""
    sys.stderr.flush()
    kept = os.dup(2)
    encoding, errors = sys.stderr.encoding, "backslashreplace"
    with (
        open(kept, "w", encoding=encoding, errors=errors, buffering=1) as shown,  # noqa: PTH123 - a number, no path
        Path(os.devnull).open("w") as dropped,
    ):
        os.dup2(dropped.fileno(), 2)
        try:
            with redirect_stderr(shown), redirect_stdout(dropped):
                yield
        finally:
            shown.flush()
            os.dup2(kept, 2)


def worker_count(job: Job, workers: int | None, address: str | None) -> int:
    """How many workers to start: all that devices are there for, or `workers`, of which a cluster may wait for some.

    Raises InputError where there is no device, and where this machine has fewer than wanted.
    """
    import ray

    if workers is not None and address is not None:
        return workers  # a cluster may grow
    resources = ray.cluster_resources()
    kind, each = ("GPU", 1) if Device.parse(job.device).kind == "cuda" else ("CPU", job.threads)
    there = resources.get(kind, 0)
    wanted = workers or int(there // each) or 1
    if wanted * each > there:
        option = "--workers" if each <= there or kind == "GPU" else "--threads"
        needed = f"{'1 worker' if wanted == 1 else f'{wanted} workers'} of {each} need{'s' * (wanted == 1)}"
        raise InputError(f"{needed} {wanted * each} {kind}s, and Ray has {there:g}; give fewer {option}")
    return wanted


def answer_shards(job: Job, run: str, planned: Sequence[Planned], workers: int) -> Iterator[Done]:
    """Have workers answer shards; yields each that is written. Raises InputError of a worker that cannot go on."""
    import ray.data

    gpus = 1 if Device.parse(job.device).kind == "cuda" else 0
    shards = ray.data.from_items([asdict(shard) for shard in planned], override_num_blocks=len(planned))
    pool = ray.data.ActorPoolStrategy(
        size=min(workers, len(planned)),
        max_concurrent_calls_per_actor=AT_ONCE,
        max_tasks_in_flight_per_actor=AT_ONCE,
        enable_true_multi_threading=True,
    )
    answered = shards.map(_RayWorker, fn_constructor_args=[job, run], compute=pool, num_cpus=job.threads, num_gpus=gpus)
    with _interrupted() as interrupted:
        for row in answered.iter_rows():
            if interrupted.is_set():
                raise KeyboardInterrupt
            if row["problem"] is not None:
                raise InputError(row["problem"])
            yield Done(**{name: value for name, value in row.items() if name != "problem"})


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """Set by Ctrl-C, which also raises KeyboardInterrupt: that is lost where it comes in a callback of Ray's."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that may handle signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class _RayWorker:
    """A worker as Ray Data calls it: a row of the plan in, a row of counts out.

    An InputError goes out as text: Ray would wrap it in tracebacks.
    """

    def __init__(self, job: Job, run: str) -> None:
        self._worker: Worker | InputError
        try:
            self._worker = Worker(job, run)
            threading.Thread(target=_watch, args=[self._worker], daemon=True).start()
        except InputError as error:
            self._worker = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if isinstance(self._worker, InputError):
                raise self._worker
            return {**asdict(self._worker.answer(Planned(**row))), "problem": None}
        except InputError as error:
            return {**asdict(Done(0, 0, None, 0)), "problem": str(error)}
        except BrokenEngineError as error:
            _give_up(f"the engine has failed: {error}")


def _watch(worker: Worker) -> NoReturn:
    while not worker.stuck:
        time.sleep(1)
    _give_up(f"a page was opened for more than {LONGEST_OPENING:g} seconds")


def _give_up(why: str) -> NoReturn:
    """End this process: Ray starts a new one, and gives it the same shards."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(1)
