"""Waits for work no longer than its client does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from runtime.serve.protocol.errors import NO_RETRY, RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
    from typing import Any

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client has closed its connection."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result], deadline: float) -> Result:
    """Await work; cancel it and raise ClientGoneError when the client goes away, RequestError 504 at the deadline.

    receive: the request's, its body read. deadline: by `time.monotonic`.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    try:
        done, _ = await asyncio.wait((task, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ClientGoneError
        raise RequestError(504, "the answer took longer than the server allows", code="timeout", headers=NO_RETRY)
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
