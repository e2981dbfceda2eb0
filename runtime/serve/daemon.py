"""Work in threads that the process does not wait for at its end: weights load and pages are drawn for minutes."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


def in_daemon(
    work: Callable[[], Result], name: str, ended: Callable[[], object] = lambda: None
) -> asyncio.Future[Result]:
    """Run work in a thread. ended: is called in the event loop when the thread has ended, awaited or not."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            tell(partial(done.set_result, work()))
        except BaseException as error:
            tell(partial(done.set_exception, error))

    def tell(outcome: Callable[[], None]) -> None:
        def in_loop() -> None:
            ended()
            if not done.cancelled():
                outcome()

        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(in_loop)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:  # the system has no more threads
        ended()
        raise
    return done


class Workers:
    """Runs a bounded number of functions at a time.

    Whoever waits for a free thread and goes away leaves nothing; work that has begun goes on, and keeps its place.
    """

    def __init__(self, most: int, name: str) -> None:
        self._free, self._name = asyncio.Semaphore(most), name

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run work in a thread, once there is a free one."""
        await self._free.acquire()
        return await in_daemon(work, self._name, self._free.release)
