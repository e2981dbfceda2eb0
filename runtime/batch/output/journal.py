"""How often each unfinished shard was begun, and which page a worker had in hand when it died.

Kept with the output, so that it outlives workers, drivers and machines. A page is given up only where workers died
while it was answered alone: who dies while pages are answered together may have died of any of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

    from runtime.batch.storage import Storage

FOLDER = "unfinished"
NOTING_STARTS = 2
"""Starts in a run from which each page is noted before it is opened: decoders are what mostly ends a process."""
STARTS_TOGETHER, ATTEMPTS_TOGETHER = 5, 10
"""Starts in one run, and in all, after which pages are answered one by one: workers die, but not of suspects."""
DEATHS_ALONE = 2
"""Deaths of workers that answered a page alone, after which it gets an error."""
DEATHS_OUTSIDE = 3
"""Deaths in one run while a shard was read or written, which is no page's fault, after which the run ends."""
FAILURES = 3
"""Failures of the engine or the device in one run, after which the run ends."""


@dataclass
class Attempt:
    """The journal of one shard, while it is answered."""

    storage: Storage
    """The output."""
    number: int
    """Of the shard."""
    run: str
    """The run that began it last."""
    starts: int = 0
    """How often this run began it."""
    attempts: int = 0
    """How often any run did."""
    suspects: list[int] = field(default_factory=list)
    """Rows of the shard that were opened when a worker of this run died."""
    alone: dict[int, int] = field(default_factory=dict)
    """Rows that were answered alone when workers died, and how often."""
    failures: int = 0
    """How often the engine or the device failed in this run."""
    outside: int = 0
    """How often workers of this run died while they read the shard, or wrote it."""
    handling: bool = False
    """Whether it is read or written now."""
    noted: tuple[int, bool] | None = None
    """Row that the worker has in hand now, and whether alone."""

    @classmethod
    def begin(cls, storage: Storage, number: int, run: str) -> Attempt:
        """Note that a shard is begun. Who is still noted was in hand when a worker died. Raises InputError."""
        attempt = cls(storage, number, run)
        found = storage.find(attempt._name)  # a late worker of another run may finish the shard at any time
        if found is not None:
            try:
                attempt._take(json.loads(found))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise InputError(f"{storage.url}/{attempt._name}: is damaged ({error}); delete it") from error
        attempt.starts += 1
        attempt.attempts += 1
        attempt._write()
        return attempt

    @classmethod
    def forget(cls, storage: Storage, number: int) -> None:
        """Delete the journal of a shard that is written, if a worker died before it could."""
        storage.delete(cls(storage, number, "")._name)

    def _take(self, known: dict[str, Any]) -> None:
        """Go on from what the last attempt has left."""
        same = known["run"] == self.run
        self.attempts, noted = known["attempts"], known["noted"]
        self.alone = {int(row): count for row, count in known["alone"].items()}
        if same:  # a run that was stopped says nothing of its pages
            self.starts, self.suspects, self.failures = known["starts"], known["suspects"], known["failures"]
            self.outside = known["outside"] + known["handling"]
        if noted is not None:
            row, alone = noted
            if alone:
                self.alone[row] = self.alone.get(row, 0) + 1
            elif same and row not in self.suspects:
                self.suspects.append(row)

    @property
    def notes(self) -> bool:
        """Whether to note each page before it is opened, and what else is done."""
        return self.starts >= NOTING_STARTS

    @property
    def one_by_one(self) -> bool:
        """Whether to answer all its pages alone."""
        return self.starts > STARTS_TOGETHER or self.attempts > ATTEMPTS_TOGETHER

    def kills(self, row: int) -> bool:
        """Whether workers have died often enough while they answered a row alone."""
        return self.alone.get(row, 0) >= DEATHS_ALONE

    @property
    def ends_outside(self) -> bool:
        """Whether workers have died often enough while they read the shard, or wrote it."""
        return self.outside >= DEATHS_OUTSIDE

    def handle(self, *, now: bool) -> None:
        """Note whether the shard is read or written now, while the worker does nothing else."""
        self.handling = now
        self._write()

    def note(self, row: int | None, *, alone: bool = False) -> None:
        """Note a row before it is opened, or answered alone, and None after it."""
        self.noted = None if row is None else (row, alone)
        self._write()

    def survived(self, row: int) -> None:
        """Note that a row was answered alone, and nobody died."""
        self.noted = None
        self.suspects = [other for other in self.suspects if other != row]
        self._write()

    def failed(self) -> int:
        """Note that the engine or the device has failed, which is no page's fault. Returns how often it did."""
        self.noted = None
        self.failures += 1
        self._write()
        return self.failures

    def end(self) -> None:
        """Forget the shard: it is finished."""
        self.storage.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.number:06}.json"

    def _write(self) -> None:
        names = "run", "starts", "attempts", "suspects", "alone", "failures", "outside", "handling", "noted"
        self.storage.write(self._name, json.dumps({name: getattr(self, name) for name in names}).encode())


def forget_finished(storage: Storage, finished: Collection[int]) -> None:
    """Delete what workers leave that die between writing a shard and ending its journal, or while they start."""
    for name in storage.names(FOLDER):
        number = name.partition(".")[0]
        if not number.isdigit() or int(number) in finished:
            storage.delete(f"{FOLDER}/{name}")
