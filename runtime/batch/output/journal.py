"""How often each unfinished shard was begun, and which page a worker was answering alone when it died.

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
CAREFUL_STARTS = 3
"""Starts in one run, of which the last answers its pages one by one: one of them may kill its worker."""
CAREFUL_ATTEMPTS = 6
"""The same for starts in all runs: a driver that dies is mostly stopped by its user, or dies of such a page too."""
DEATHS = 2
"""Deaths of a worker that was answering one page alone, after which the page gets an error."""


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
    """For rows of the shard that were answered alone: how often the worker died meanwhile, the present attempt too."""

    @classmethod
    def begin(cls, storage: Storage, number: int, run: str) -> Attempt:
        """Note that a shard is begun."""
        attempt = cls(storage, number, run)
        found = storage.find(attempt._name)  # a late worker of another run may finish the shard at any time
        if found is not None:
            try:
                known = json.loads(found)
                attempt.starts = known["starts"] if known["run"] == run else 0
                attempt.attempts = known["attempts"]
                attempt.deaths = {int(row): count for row, count in known["deaths"].items()}
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise InputError(f"{storage.url}/{attempt._name}: is damaged ({error}); delete it") from error
        attempt.starts += 1
        attempt.attempts += 1
        attempt._write()
        return attempt

    @property
    def careful(self) -> bool:
        """Whether to answer its pages one by one."""
        return self.starts >= CAREFUL_STARTS or self.attempts >= CAREFUL_ATTEMPTS

    def kills(self, row: int) -> bool:
        """Whether a row has killed its worker often enough to be given up."""
        return self.deaths.get(row, 0) >= DEATHS

    def alone(self, row: int) -> None:
        """Note, before it is, that a row is answered alone: it counts as a death until `survived`."""
        self.deaths[row] = self.deaths.get(row, 0) + 1
        self._write()

    def survived(self, row: int) -> None:
        """Note that a row that was answered alone did not kill the worker."""
        del self.deaths[row]
        self._write()

    def end(self) -> None:
        """Forget the shard: it is finished."""
        self.storage.delete(self._name)

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{self.number:06}.json"

    def _write(self) -> None:
        values = {"run": self.run, "starts": self.starts, "attempts": self.attempts, "deaths": self.deaths}
        self.storage.write(self._name, json.dumps(values).encode())
