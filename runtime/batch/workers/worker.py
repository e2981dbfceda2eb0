"""A worker: answers shards of pages with one model, and writes them."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from console.errors import InputError, NoMemoryError
from console.text import escape_surrogates
from runtime.batch.output.columns import parse_fields
from runtime.batch.output.journal import FAILURES, Attempt
from runtime.batch.plan import read_shard
from runtime.batch.storage_error import asked_again
from runtime.batch.workers.answering import Answered, Answering, BrokenEngineError
from runtime.batch.workers.turns import Turns
from runtime.engine.request import Finished
from runtime.ort.out_of_memory import FailedRunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.batch.job import Job
    from runtime.batch.plan import Planned
    from runtime.batch.source.page import Page

AT_ONCE = 4
"""Shards that a worker is given at the same time: while the last pages of one are answered, others fill the rows."""
LONGEST_OPENING = 300.0
"""Seconds in which the pictures of a row are read and drawn; a library that takes longer cannot be stopped."""
LONGEST_WAIT = 1800.0
"""Seconds that one step of the engine may take, which on a CPU reads 16,384 patches, or one access to a storage."""
_OF_THE_DEVICE = NoMemoryError, FailedRunError  # errors that may be the fault of other pages, or of the device


@dataclass(frozen=True)
class Done:
    """A shard that is written."""

    number: int
    """Of the shard."""
    answered: int
    """Rows that were answered now; others of its file are of an earlier run."""
    errors: int
    """Rows of its file with an error."""
    error: str | None
    """The first error."""
    starts: int
    """How often this run began it; 0 where it was written before."""


class Worker:
    """Answers shards. Several threads may call `answer`."""

    def __init__(self, job: Job, run: str) -> None:
        """Open the model. run: names this run in the journal. Raises InputError as `Answering` does."""
        self._job, self._run, self._files = job, run, job.files
        self._answering, self._turns = Answering(job), Turns()
        self._columns = job.columns
        self._handling: dict[int, float] = {}

    def answer(self, planned: Planned) -> Done:
        """Answer the pages of a shard and write them, unless they are written.

        Raises InputError where the output cannot be written or the input has changed, and BrokenEngineError.
        """
        written = dict(enumerate(self._files.find(planned.number)))
        kept = {place: row for place, row in written.items() if row["error"] is None or not self._job.retry_errors}
        if len(kept) == planned.rows:
            Attempt.forget(self._job.output, planned.number)
            return _done(planned.number, kept, 0, 0)
        attempt = Attempt.begin(self._job.output, planned.number, self._run)
        with self._handled(attempt):
            first, pages = self._pages(planned, attempt)
        try:
            answered = self._answer({row: page for row, page in pages.items() if row not in kept}, attempt)
        except BrokenEngineError as error:
            if attempt.failed() < FAILURES:
                raise
            raise InputError(f"the engine has failed {attempt.failures} times with these pages ({error})") from error
        with self._handled(attempt):
            rows = kept | {row: self._row(first + row, one, attempt) for row, one in answered.items()}
            for row, before in written.items():
                if row not in kept:
                    rows[row]["attempts"] += before["attempts"]
            rows = dict(sorted(rows.items()))
            asked_again(lambda: self._files.write(planned.number, list(rows.values())))
        attempt.end()
        return _done(planned.number, rows, len(answered), attempt.starts)

    @contextmanager
    def _handled(self, attempt: Attempt) -> Iterator[None]:
        """Time how long a shard is read or written. After a death nothing else is done meanwhile, to know the cause."""
        with self._turns.alone() if attempt.notes else nullcontext():
            if attempt.notes:
                attempt.handle(now=True)
            self._handling[attempt.number] = time.monotonic()
            try:
                yield
            finally:
                del self._handling[attempt.number]
            if attempt.notes:
                attempt.handle(now=False)

    def _pages(self, planned: Planned, attempt: Attempt) -> tuple[int, dict[int, Page]]:
        """Number of a shard's first row in the run, and its pages by their rows in the shard."""
        if attempt.ends_outside:
            file = self._files.name(planned.number)
            raise InputError(
                f"{attempt.outside} workers died while pages for {file} were read, or answers written to it"
            )
        shard = read_shard(self._job.output, planned)
        pages = dict(enumerate(chain.from_iterable(map(self._job.source.pages, shard.parts))))
        if len(pages) != planned.rows:
            raise InputError(
                f"{self._job.source.storage.url}: has changed since the run was begun; give another --output"
            )
        return shard.first, pages

    @property
    def stuck(self) -> str | None:
        """What has taken so long that it will hardly end, so that only a new process can go on; None for nothing."""
        if page := self._answering.opened_longer_than(LONGEST_OPENING):
            return f"{page} was opened for more than {LONGEST_OPENING:g} seconds"
        if self._answering.turn_seconds > LONGEST_WAIT:
            return f"a step of the engine took more than {LONGEST_WAIT:g} seconds"
        if time.monotonic() - min(self._handling.copy().values(), default=math.inf) > LONGEST_WAIT:
            return f"pages were read from the input, or answers written, for more than {LONGEST_WAIT:g} seconds"
        return None

    def close(self) -> None:
        """End the engine."""
        self._answering.close()

    def _answer(self, pages: Mapping[int, Page], attempt: Attempt) -> dict[int, Answered]:
        """Answer suspects alone, then the others together, and again alone those with an error of the device."""
        answered = {row: _deadly(page, attempt.alone[row]) for row, page in pages.items() if attempt.kills(row)}
        left = {row: page for row, page in pages.items() if row not in answered}
        suspects = {*left} if attempt.one_by_one else {*left} & {*attempt.suspects, *attempt.alone}
        for row in sorted(suspects, key=lambda row: -attempt.alone.get(row, 0)):
            answered[row] = self._answer_alone(row, pages[row], attempt)
        with self._turns.shared():
            rest = {row: page for row, page in left.items() if row not in suspects}
            answered |= self._answering.together(rest, attempt.note if attempt.notes else None)
        for row in rest:
            if isinstance(answered[row].error, _OF_THE_DEVICE):
                answered[row] = self._answer_alone(row, pages[row], attempt)
        return answered

    def _answer_alone(self, row: int, page: Page, attempt: Attempt) -> Answered:
        """Answer a page while no other is."""
        with self._turns.alone():
            attempt.note(row, alone=True)
            answered = self._answering.together({row: page})[row]
            if isinstance(answered.error, _OF_THE_DEVICE):
                self._answering.check_device()
            attempt.survived(row)
        return answered

    def _row(self, number: int, answered: Answered, attempt: Attempt) -> dict[str, Any]:
        """A row of the output; a page without an answer has an error in place of it."""
        page, collected, end = answered.page, answered.collected, answered.collected.end
        row: dict[str, Any] = dict.fromkeys(self._files.schema.names)
        row |= {"row": number, "document": escape_surrogates(page.document), "page": page.page, "prompt": page.prompt}
        row["attempts"] = attempt.attempts
        if not isinstance(end, Finished):
            row["error"] = escape_surrogates(str(answered.error))
            return row
        if self._columns:
            fields, row["error"] = parse_fields(collected.text, self._columns)
            row |= fields
            if row["error"] is not None and end.reason == "length":
                row["error"] = f"the answer was truncated at {end.completion_tokens} tokens; give more --max-new-tokens"
        return row | {
            "answer": collected.text,
            "reasoning": collected.reasoning or None,
            "finish": "length" if end.reason == "length" else "end",
            "prompt_tokens": end.prompt_tokens,
            "tokens": end.completion_tokens,
            "milliseconds": round(1000 * (collected.seconds[-1] - collected.seconds[0])),
        }


def _deadly(page: Page, deaths: int) -> Answered:
    return Answered.failed(
        page, InputError(f"its worker died, or was stuck, {deaths} times while this page alone was answered")
    )


def _done(number: int, rows: Mapping[int, dict[str, Any]], answered: int, starts: int) -> Done:
    failed = [row for row in rows.values() if row["error"] is not None]
    first = None
    if failed:
        document, page, error = (failed[0][name] for name in ("document", "page", "error"))
        first = error if document in error else f"{document}{f', page {page}' if page else ''}: {error}"
    return Done(number, answered, len(failed), first, starts)
