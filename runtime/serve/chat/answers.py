"""Brings what the engine says about the answers to one request from its thread to the event loop.

A reader that is slower than the engine stalls nothing: events wait in a list, no longer than the answers, and are taken
all at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.engine.request import Deliver, Event, Request
    from runtime.engine.sequence import Sequence as Ticket
    from runtime.engine.thread import EngineThread


class Said(NamedTuple):
    """An event and the answer that it belongs to."""

    choice: int
    """Number of the answer, from 0."""
    event: Event
    """What the engine says."""


class Answers:
    """The answers to one request. All methods but `submit` are called in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Said] = deque()
        self._came, self._waking = asyncio.Event(), False
        self._tickets: list[Ticket] = []
        self._closed = False

    def submit(self, engine: EngineThread, requests: Sequence[Request]) -> None:
        """Queue a request for each answer to one prompt, in a worker thread; none after `close`.

        Raises as the engine does.
        """
        for number, request in enumerate(requests):
            if self._closed:
                break
            first = self._tickets[0] if self._tickets else None
            self._tickets.append(engine.submit(request, self._deliver(number), first))
        if self._closed:  # while the last was queued
            self._cancel()

    async def batch(self, beat: float) -> list[Said]:
        """All that has come since the last batch, as soon as there is something; nothing after `beat` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(beat):
                await self._came.wait()
        self._came.clear()
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        """Free the rows of answers that still run."""
        self._closed = True
        self._cancel()

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _deliver(self, choice: int) -> Deliver:
        def deliver(event: Event) -> None:
            self._events.append(Said(choice, event))
            if not self._waking:  # one call wakes the loop for all that comes until it runs
                self._waking = True
                self._call(self._wake)

        return deliver

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(function)

    def _wake(self) -> None:
        self._waking = False
        self._came.set()
