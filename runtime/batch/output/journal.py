"""How often each unfinished shard was begun, and which page a worker had in hand when it died.

Kept with the output, so that it outlives workers, drivers and machines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from runtime.batch.storage import Storage

FOLDER = "unfinished"
NOTING_STARTS = 2
"""Starts of a shard from which each page is noted before it is opened: decoders are what mostly ends a process."""
UNEXPLAINED = 5
"""Starts in one run that ended without a note, after which the pages are answered one by one."""
ATTEMPTS = 10
"""The same for all runs: a driver that dies is mostly stopped by its user, but may die of a page, too."""
DEATHS = 2
"""Times that a worker died with the same page noted, after which the page gets an error."""


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
    deaths: dict[int, int] = field(default_factory=dict)
    """For rows of the shard: how often a worker died with them noted."""
    noted: int | None = None
    """Row that the worker has in hand now."""

    @classmethod
    def begin(cls, storage: Storage, number: int, run: str) -> Attempt:
        """Note that a shard is begun. A row that is still noted has had its worker die. Raises InputError."""
        attempt = cls(storage, number, run)
        found = storage.find(attempt._name)  # a late worker of another run may finish the shard at any time
        if found is not None:
            try:
                known = json.loads(found)
                attempt.starts = known["starts"] if known["run"] == run else 0
                attempt.attempts, noted = known["attempts"], known["noted"]
                attempt.deaths = {int(row): count for row, count in known["deaths"].items()}
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise InputError(f"{storage.url}/{attempt._name}: is damaged ({error}); delete it") from error
            if noted is not None:
                attempt.deaths[noted] = attempt.deaths.get(noted, 0) + 1
        attempt.starts += 1
        attempt.attempts += 1
        attempt._write()
        return attempt

    @property
    def notes_openings(self) -> bool:
        """Whether to note each page before it is opened."""
        return max(self.starts, self.attempts - 1) >= NOTING_STARTS

    @property
    def one_by_one(self) -> bool:
        """Whether to answer its pages one by one: what ends its workers is not the opening of one of them."""
        explained = sum(self.deaths.values())
        return self.starts - 1 - explained >= UNEXPLAINED or self.attempts - 1 - explained >= ATTEMPTS

    def kills(self, row: int) -> bool:
        """Whether workers have died with a row noted often enough to give it up."""
        return self.deaths.get(row, 0) >= DEATHS

    def note(self, row: int | None) -> None:
        """Note a row before it is opened or answered alone, and None after it."""
        self.noted = row
        self._write()

    def end(self) -> None:
        """Forget the shard: it is finished."""
        self.storage.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.number:06}.json"

    def _write(self) -> None:
        names = "run", "starts", "attempts", "deaths", "noted"
        self.storage.write(self._name, json.dumps({name: getattr(self, name) for name in names}).encode())
