"""Runs an engine in a thread of its own."""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from runtime.engine.engine import Engine
    from runtime.engine.request import Deliver, Request
    from runtime.engine.sequence import Sequence


class ClosedError(InputError):
    """The engine takes no more requests."""


_STOPPING = ClosedError("the server is stopping; try again later")


class EngineThread:
    """A thread that answers what is submitted, and sleeps while there is nothing to do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        """Answers the requests."""
        self._work, self._closing, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._turn_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers requests."""
        return not self._ended.is_set()

    @property
    def turn_seconds(self) -> float:
        """How long the turn has taken that runs now, or that the thread died in; 0 where none does."""
        since = self._turn_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, request: Request, deliver: Deliver, like: Sequence | None = None) -> Sequence:
        """Queue a request, as `Engine.submit` does. Raises ClosedError after `close`, and where the thread has died."""
        if self._closing.is_set() or not self.alive:
            raise _STOPPING
        sequence = self.engine.submit(request, deliver, like)
        self._work.set()
        if not self.alive:  # it ended in the meantime
            self.engine.fail_waiting(_STOPPING)
        return sequence

    def close(self, seconds: float) -> None:
        """Take no more requests, finish what has come for at most `seconds`, and end the thread."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._work.wait()
                self._work.clear()
                self._answer()
            self._answer()
        except BaseException:
            traceback.print_exc()
            self._closing.set()
            self._ended.set()
            self.engine.fail_all(ClosedError("the engine has stopped; see its log"))
            raise
        self._ended.set()  # first: whoever submits after this looks at it, and ends the request itself
        self.engine.fail_all(_STOPPING)

    def _answer(self) -> None:
        """Answer until nothing is left, or the time is up."""
        more = True
        while more and time.monotonic() < self._deadline:
            self._turn_since = time.monotonic()
            more = self.engine.turn()
            self._turn_since = None
