"""Ray: starts it here or joins a cluster, and has Ray Data give shards to workers."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.batch.plan import Planned
from runtime.batch.workers.answering import BrokenEngineError
from runtime.batch.workers.worker import AT_ONCE, Done, Worker
from runtime.ort.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.batch.job import Job

_OBJECT_STORE = 256 << 20  # bytes; what goes through it are numbers of shards and counts


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at an address. Raises InputError where that is not possible."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters of its log is raised
    import ray
    from ray.data import DataContext

    here = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE, "num_cpus": os.cpu_count()}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = "on this machine" if address is None else f"at --address {address}"
        raise InputError(f"Ray cannot be started {where} ({str(error).partition(chr(10))[0]})") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def worker_count(job: Job, workers: int | None) -> int:
    """Workers that the cluster has devices for, at most `workers`. Raises InputError where it has none."""
    import ray

    resources = ray.cluster_resources()
    kind = "GPU" if Device.parse(job.device).kind == "cuda" else "CPU"
    each = 1 if kind == "GPU" else job.threads
    fitting = int(resources.get(kind, 0) // each)
    if not fitting:
        raise InputError(f"Ray has {resources.get(kind, 0):g} {kind}s, and a worker needs {each}")
    return fitting if workers is None else min(workers, fitting)


def answer_shards(job: Job, run: str, planned: Sequence[Planned], workers: int) -> Iterator[Done]:
    """Have workers answer shards; yields each that is written. Raises InputError of a worker that cannot go on."""
    import ray.data
    from ray.exceptions import RayError

    gpus = 1 if Device.parse(job.device).kind == "cuda" else 0
    shards = ray.data.from_items([asdict(shard) for shard in planned], override_num_blocks=len(planned))
    pool = ray.data.ActorPoolStrategy(
        size=min(workers, len(planned)),
        max_concurrent_calls_per_actor=AT_ONCE,
        max_tasks_in_flight_per_actor=AT_ONCE,
        enable_true_multi_threading=True,
    )
    answered = shards.map(_RayWorker, fn_constructor_args=[job, run], compute=pool, num_cpus=job.threads, num_gpus=gpus)
    try:
        for row in answered.iter_rows():
            yield Done(**row)
    except (RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise _input_error(error) from error


class _RayWorker:
    """A worker as Ray Data calls it: a row of the plan in, a row of counts out."""

    def __init__(self, job: Job, run: str) -> None:
        self._worker: Worker | InputError
        try:
            self._worker = Worker(job, run)
        except InputError as error:  # raised by each call: what a constructor raises, Ray tells as text
            self._worker = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._worker, InputError):
            raise self._worker
        try:
            return asdict(self._worker.answer(Planned(**row)))
        except BrokenEngineError as error:
            logging.getLogger(__name__).critical("the engine has failed: %s", error)
            os._exit(1)  # Ray starts a new process, and gives it the same shards


def _input_error(error: Exception) -> Exception:
    """The InputError that a worker raised; else the error itself."""
    from ray.exceptions import RayError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError) and not isinstance(cause, RayError):  # Ray's copy of it has a traceback
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    return error
