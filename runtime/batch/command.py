"""`python -m runtime batch`: a run from its start, or from where it was stopped, to its summary."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from console.errors import InputError, naming
from console.locks import lock, unlock
from console.progress import say, track
from runtime.batch.cluster import answer_shards, cluster, worker_count
from runtime.batch.output.journal import FOLDER as UNFINISHED
from runtime.batch.output.report.page import check_report, write_report
from runtime.batch.output.shards import FOLDER as PAGES
from runtime.batch.output.summary import summarize
from runtime.batch.plan import PLAN, read_plan, write_plan
from runtime.batch.source.folder import Folder
from runtime.batch.workers.answering import open_model
from runtime.ort.device import Device
from runtime.ort.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from runtime.batch.job import Job
    from runtime.batch.output.summary import Summary
    from runtime.batch.plan import Planned
    from runtime.batch.source.page import Listed
    from runtime.batch.workers.worker import Done

_SECONDS_BETWEEN_LINES = 5.0


def run_batch(
    job: Job, *, address: str | None = None, workers: int | None = None, report: Path | None = None
) -> Summary:
    """Answer all pages of a job that the output does not have yet, and count what it has then.

    address: of a Ray cluster; None for Ray on this machine. workers: at most so many; None for all that fit. report:
    file for an HTML page. Raises InputError for a job that cannot be done, and where the output cannot be written:
    finished shards stay.
    """
    if report is not None:
        check_report(report)
    _check(job)
    with _locked(job):
        plan = _plan(job)
        finished = job.files.finished()
        again = {shard.number for shard in plan if job.retry_errors and _has_errors(job, shard, finished)}
        todo = [shard for shard in plan if shard.number not in finished - again]
        if todo:
            _say_resumed(plan, todo)
            _answer(job, todo, address, workers)
        summary = summarize(job.files, plan, [column.name for column in job.columns])
        if report is not None:
            write_report(report, job.settings(), job.files, [shard.number for shard in plan], summary)
        return summary


def _check(job: Job) -> None:
    """Raise InputError, before Ray starts, for what can be known here; workers check the rest."""
    with naming("--schema"):
        _ = job.columns
    if job.schema is not None and job.source.prompt is None and isinstance(job.source, Folder):
        raise InputError("--schema: needs a --prompt that says what the fields are")
    if job.source.storage.holds(job.output):  # the files of the output would be taken for a source
        raise InputError(f"--output {job.output.url}: is inside --input; give a folder elsewhere")
    folder, kind = job.model.folder, Device.parse(job.device).kind
    if folder is None:
        return
    load_manifest(folder).target(folder, kind)
    if kind == "cpu":  # this machine need not have a GPU
        model, settings, _ = open_model(job)
        if unused := model.generation.without_effect(settings.used_fields(model.generation)):
            say(unused)


@contextmanager
def _locked(job: Job) -> Iterator[None]:
    """Hold the output, where it is a folder here. Files that a killed run left half written are deleted."""
    folder = job.output.folder
    if folder is None:
        yield
        return
    held = lock(folder)
    try:
        for name in (PAGES, UNFINISHED):
            job.output.make_folder(name)
        for partial in folder.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        unlock(held)


def _plan(job: Job) -> list[Planned]:
    """The shards of a run, listed at its first start."""
    found = read_plan(job.output)
    if found is None:
        if job.output.names(PAGES):
            raise InputError(f"{job.output.url}: has pages but no {PLAN}; give an empty --output")
        write_plan(job.output, job.settings(), _say_listed(job.source.parts()))
        found = read_plan(job.output)
        assert found is not None
    settings, plan = found
    job.check_same(settings)
    return plan


def _say_listed(listed: Iterable[Listed]) -> Iterator[Listed]:
    """Say now and then how much was listed: a source may have millions of pages."""
    pages, last = 0, time.monotonic()
    for one in listed:
        yield one
        pages += one.pages
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            say(f"listing: {pages} pages")
            last = time.monotonic()


def _has_errors(job: Job, shard: Planned, finished: set[int]) -> bool:
    return shard.number in finished and any(row["error"] is not None for row in job.files.read(shard.number, ["error"]))


def _say_resumed(plan: list[Planned], todo: list[Planned]) -> None:
    total, left = (sum(shard.rows for shard in some) for some in (plan, todo))
    if left < total:
        say(f"resuming: {total - left} of {total} pages are written")


def _answer(job: Job, todo: list[Planned], address: str | None, workers: int | None) -> None:
    run = uuid.uuid4().hex
    say("starting Ray" if address is None else f"joining Ray at {address}")
    with cluster(address):
        count = worker_count(job, workers, address)
        say(f"{sum(shard.rows for shard in todo)} pages, {count} worker{'s' if count > 1 else ''}")
        done = _say_trouble(answer_shards(job, run, todo, count))
        start, answered = time.monotonic(), 0
        for shard in track(done, "answering", sum(shard.rows for shard in todo), lambda shard: shard.rows):
            answered += shard.rows
        seconds = time.monotonic() - start
    speed = f"{seconds:.0f} s, {answered / seconds:.2f}/s"
    say(f"answered {answered} pages in {speed}; answers are in {job.output.place(PAGES)}")


def _say_trouble(done: Iterable[Done]) -> Iterator[Done]:
    """Say which pages were begun again, and the first error: whoever sees it may stop a run whose pages all have it."""
    said = False
    for shard in done:
        if shard.starts > 1:
            say(f"{shard.rows} pages were begun {shard.starts} times: their worker has died")
        if shard.error is not None and not said:
            say(f"first error: {shard.error}")
            said = True
        yield shard
