"""What a worker's process leaves for the next one, which Ray starts for the same worker for ever, and says nothing."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from console.errors import InputError
from console.progress import say
from runtime.batch.output.journal import FOLDER

if TYPE_CHECKING:
    from runtime.batch.storage import Storage


@dataclass
class Life:
    """Kept in a file of the output until the worker has opened its model, or gives up."""

    output: Storage
    """The output."""
    name: str
    """Of the worker, the same in each of its processes."""
    openings: int = 0
    """How many processes have begun to open the model, and died."""

    @classmethod
    def begin(cls, output: Storage, name: str) -> Life:
        """Read what the process before has left, and say why that gave up. Raises InputError."""
        life = cls(output, name)
        found = json.loads(output.find(life._file) or b"{}")
        life.openings = found.get("openings", 0)
        if why := found.get("why"):
            say(f"a worker has started anew: {why}")
        return life

    def note_opening(self) -> None:
        """Note that the model is opened now."""
        self._write({"openings": self.openings + 1})

    def end(self) -> None:
        """Forget what was noted."""
        self.output.delete(self._file)

    def give_up(self, why: str) -> NoReturn:
        """End this process: Ray starts a new one, and gives it the same shards."""
        try:
            self._write({"why": why})
        except InputError as error:
            sys.stderr.write(f"{error}\n")
        sys.stderr.write(f"{why}\n")
        sys.stderr.flush()
        os._exit(1)

    @property
    def _file(self) -> str:
        return f"{FOLDER}/worker-{self.name}.json"

    def _write(self, content: dict[str, object]) -> None:
        self.output.write(self._file, json.dumps(content).encode())
