"""`python -m runtime batch`: a run from its start, or from where it was stopped, to its summary."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING

from console.errors import InputError
from console.locks import lock, unlock
from console.progress import say, track
from runtime.batch.check import check
from runtime.batch.cluster import cluster
from runtime.batch.output.journal import FOLDER as UNFINISHED
from runtime.batch.output.journal import forget_finished
from runtime.batch.output.report.page import check_report, write_report
from runtime.batch.output.shards import FOLDER as PAGES
from runtime.batch.output.summary import summarize
from runtime.batch.plan import PLAN, read_plan, write_plan
from runtime.batch.pool import answer_shards, sized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from runtime.batch.job import Job
    from runtime.batch.output.summary import Summary
    from runtime.batch.plan import Planned
    from runtime.batch.source.page import Listed
    from runtime.batch.workers.worker import Done

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_RETRIES = 60.0  # that are said


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
    check(job)
    with _locked(job):
        plan = _plan(job)
        left = _left(job, plan)
        if left:
            _say_resumed(job, plan, left)
            _answer(job, [shard for shard in plan if shard.number in left], left, address, workers)
            _clean(job, {shard.number for shard in plan})
        summary = summarize(job.files, plan, [column.name for column in job.columns])
        if not left:
            say(f"nothing is left to answer: {'no row has an error' if job.retry_errors else 'all rows are written'}")
        if report is not None:
            write_report(report, job.settings(), job.files, [shard.number for shard in plan], summary)
        return summary


@contextmanager
def _locked(job: Job) -> Iterator[None]:
    """Hold the output, where it is a folder here. One that was made for nothing is deleted."""
    folder = job.output.folder
    if folder is None:
        yield
        return
    made = not folder.exists()
    held = lock(folder)
    try:
        yield
    finally:
        unlock(held)
        with suppress(OSError):  # it has files
            if made:
                folder.rmdir()


def _plan(job: Job) -> list[Planned]:
    """The shards of a run, listed at its first start."""
    found = read_plan(job.output)
    if found is None:
        if job.output.names(PAGES):
            raise InputError(f"{job.output.url}: has pages but no {PLAN}; give an empty --output")
        write_plan(job.output, job.planned(), _say_listed(job.source.parts()))
        found = read_plan(job.output)  # or that of another run, which was the first to write it to a bucket
        assert found is not None
    settings, plan = found
    try:
        job.check_same(settings)
    except InputError as error:
        if job.output.names(PAGES):
            raise
        raise InputError(f"{error}, or delete this one, which has no answers yet") from error
    for name in ("", PAGES, UNFINISHED):
        job.output.make_folder(name)
    return plan


def _clean(job: Job, finished: set[int]) -> None:
    """Delete what killed processes have left: files half written, and journals of shards that are finished."""
    for name in ("", PAGES, UNFINISHED):
        job.output.delete_partial(name)
    forget_finished(job.output, finished)


def _say_listed(listed: Iterable[Listed]) -> Iterator[Listed]:
    """Say now and then how much was listed: a source may have millions of pages."""
    pages, last = 0, time.monotonic()
    for one in listed:
        yield one
        pages += one.pages
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            say(f"listing: {pages} pages")
            last = time.monotonic()


def _left(job: Job, plan: list[Planned]) -> dict[int, int]:
    """For each shard that is not done, how many of its rows are to be answered."""
    files = job.files
    finished = files.finished()
    _clean(job, finished)
    left = {shard.number: shard.rows for shard in plan if shard.number not in finished}
    if job.retry_errors:
        for shard in plan:
            if shard.number in finished:
                errors = sum(row["error"] is not None for row in files.read(shard.number, ["error"]))
                left |= {shard.number: errors} if errors else {}
    return left


def _say_resumed(job: Job, plan: list[Planned], left: Mapping[int, int]) -> None:
    total, rows = sum(shard.rows for shard in plan), sum(left.values())
    if rows < total:
        again = ", those with an error are answered again" if job.retry_errors else ""
        say(f"resuming: {total - rows} of {total} pages are done{again}")
    elif job.output.names(UNFINISHED):
        say("resuming: no shard was finished, so all pages are answered")


def _answer(job: Job, todo: list[Planned], left: Mapping[int, int], address: str | None, workers: int | None) -> None:
    say("starting Ray" if address is None else f"joining Ray at {address}")
    with cluster(address):
        job, count = sized(job, workers, address)
        say(f"{sum(left.values())} pages, {count} worker{'s' if count > 1 else ''}; the model is loaded first")
        done = _say_trouble(answer_shards(job, todo, count, address))
        try:
            first = next(done)  # before it workers load the model, which says nothing of their speed
            start, rows = time.monotonic(), first.answered
            for shard in track(chain([first], done), "answering", sum(left.values()), lambda shard: left[shard.number]):
                rows += shard.answered if shard is not first else 0
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C or SIGTERM
                say("finished shards are kept; run the same command again to go on")
            raise
    seconds, later = time.monotonic() - start, rows - first.answered
    speed = f", the last {later} in {seconds:.0f} s, {later / seconds:.2f} pages/s" if later else ""
    say(f"finished {rows} pages{speed}; answers are in {job.output.place(PAGES)}")


def _say_trouble(done: Iterable[Done]) -> Iterator[Done]:
    """Say that pages were retried, and the first error: whoever sees it may stop a run whose pages all have it."""
    retried, last, failed = 0, float("-inf"), False
    for shard in done:
        if shard.starts > 1:
            retried += shard.answered
            if time.monotonic() - last > _SECONDS_BETWEEN_RETRIES:
                say(f"a worker has ended before its time; {retried} pages were answered again until now")
                last = time.monotonic()
        if shard.error is not None and not failed:
            say(f"first error: {shard.error}")
            failed = True
        yield shard
