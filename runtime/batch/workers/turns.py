"""Lets shards share the engine, or one have it alone."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Turns:
    """A lock for many that share, or for one alone. Whoever waits goes first, so that nobody waits for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._sharing, self._alone = 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait for those that came before, unless they share too."""
        with self._changed:
            self._wait(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for all that came before."""
        with self._changed:
            self._wait(lambda: not self._alone and not self._sharing)
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool]) -> None:
        me = object()
        self._waiting.append(me)
        self._changed.wait_for(lambda: self._waiting[0] is me and free())
        self._waiting.popleft()
        self._changed.notify_all()  # for the next one
