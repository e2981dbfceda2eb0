"""The pool of workers: how many there are, and Ray Data, which gives shards to them."""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

from console.errors import InputError
from console.progress import say
from runtime.batch.workers.process import Process, done_of
from runtime.batch.workers.worker import AT_ONCE
from runtime.ort.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ray.data import Dataset

    from runtime.batch.job import Job
    from runtime.batch.plan import Planned
    from runtime.batch.workers.worker import Done

_SECONDS_BETWEEN_LINES = 30.0


def sized(job: Job, workers: int | None, address: str | None) -> tuple[Job, int]:
    """The job with the threads of a worker, and how many workers to start: all that devices are there for, or fewer.

    Raises InputError where there is no device for one, and where this machine has none for all.
    """
    gpu = Device.parse(job.device).kind == "cuda"
    cores = [int(node.get("CPU", 0)) for node in _nodes()]
    threads = job.threads or (1 if gpu else min(filter(None, cores), default=1))
    job = replace(job, threads=threads)
    there = _room(job)
    if workers is not None and address is not None:
        return job, workers  # a cluster may grow
    if there < (workers or 1):
        raise InputError(_too_few(there, threads, gpu=gpu, address=address))
    return job, workers or there


def _nodes() -> list[dict[str, float]]:
    """What each living machine of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(job: Job) -> int:
    """Workers that there are GPUs and cores for; a worker is on one machine."""
    gpu, threads = Device.parse(job.device).kind == "cuda", job.threads or 1
    return sum(
        min(int(node.get("CPU", 0) // threads), int(node.get("GPU", 0)) if gpu else sys.maxsize) for node in _nodes()
    )


def _too_few(there: int, threads: int, *, gpu: bool, address: str | None) -> str:
    if address is not None:
        return f"--address {address}: has no room for a worker now; give --workers N to wait for what it adds"
    needs = "GPUs and cores" if gpu else "cores"
    if there:
        return f"this machine has {needs} for {there} workers with --threads {threads}; give --workers {there} or fewer"
    return f"this machine has no {'GPU with ' if gpu else ''}{threads} cores for a worker; give fewer --threads" + (
        ", or --device cpu" if gpu else ""
    )


def answer_shards(job: Job, planned: Sequence[Planned], workers: int, address: str | None) -> Iterator[Done]:
    """Have workers answer shards; yields each that is written, and says what workers say, once.

    Raises InputError of a worker that cannot go on, with its machine where there are several, and of Ray.
    """
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayError

    gpus = 1 if Device.parse(job.device).kind == "cuda" else 0
    arguments = [job, uuid.uuid4().hex, address is not None]
    said: set[str] = set()
    answered = given_to(Process, arguments, planned, workers, num_cpus=job.threads or 1, num_gpus=gpus)
    try:
        with _interrupted() as interrupted, _waiting_said(job, workers) as begun:
            for row in answered.iter_rows():
                begun.set()
                if interrupted.is_set():
                    raise KeyboardInterrupt
                yield done_of(row, said)
    except (RayError, SystemException) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(f"Ray has failed: {lines[-1].strip() if lines else type(error).__name__}") from error


def given_to(
    worker: type, arguments: Sequence[Any], planned: Sequence[Planned], workers: int, *, num_cpus: int, num_gpus: int
) -> Dataset:
    """Shards as a dataset of Ray Data, a few at a time given to each worker: an object that is called with them."""
    import ray.data

    shards = ray.data.from_items([asdict(shard) for shard in planned], override_num_blocks=len(planned))
    pool = ray.data.ActorPoolStrategy(
        size=min(workers, len(planned)),
        max_concurrent_calls_per_actor=AT_ONCE,
        max_tasks_in_flight_per_actor=AT_ONCE,
        enable_true_multi_threading=True,
    )
    return shards.map(worker, fn_constructor_args=arguments, compute=pool, num_cpus=num_cpus, num_gpus=num_gpus)


@contextmanager
def _waiting_said(job: Job, workers: int) -> Iterator[threading.Event]:
    """Until the event is set, say now and then for how many workers the cluster has room."""
    begun = threading.Event()

    def wait() -> None:
        while not begun.wait(_SECONDS_BETWEEN_LINES):
            if (there := _room(job)) < workers:
                say(f"waiting: the cluster has room for {there} of {workers} workers")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield begun
    finally:
        begun.set()
        waiting.join()


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
