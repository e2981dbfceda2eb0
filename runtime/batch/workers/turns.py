"""Lets shards share the engine, or one have it alone."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Turns:
    """A lock for many that share, or for one alone, who need not wait for those that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = self._alone = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait until nobody is alone, nor waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody shares, and for whoever is alone before."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone += 1
            self._changed.wait_for(lambda: not self._sharing)
        try:
            yield
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()
