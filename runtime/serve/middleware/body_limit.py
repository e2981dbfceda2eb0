"""Bounds the bodies of requests while they are read: each by its size and time, all together by their size."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.serve.protocol.error_response import error_response
from runtime.serve.protocol.errors import NO_RETRY, RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MARKS = (b",", b"[", b"{")  # in front of each JSON value but the first and those of keys; base64 has none


@dataclass(frozen=True)
class BodyLimits:
    """How much of bodies is held, and for how long they may come."""

    one: int = 64 << 20
    """Bytes of one body."""
    values: int = 500_000
    """Values of one body; their marks inside texts count too. As objects, a million take a second and 100 MB."""
    all: int = 512 << 20
    """Bytes of the bodies of all requests that are being answered."""
    seconds: float = 60
    """Time for a body to arrive."""
    linger_seconds: float = 20
    """Time for which the rest of a body that is too large is read and dropped: most clients read the answer then."""


class BodyLimit:
    """Reads the body of a request, within limits, before the request is passed on."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self._app, self._limits = app, limits
        self._held: dict[object, int] = {}  # bytes of the body of each request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, parts = dict(scope["headers"]), list[bytes]()
        try:
            await self._read(headers, receive, parts)
            await self._app(scope, _whole(parts, receive), send)
        except _RefusedError as refused:
            asks_first = b"expect" in headers and not parts  # it has sent nothing yet
            self._held.pop(id(parts), None)
            parts.clear()
            if refused.error.status != 408 and not asks_first:
                await self._drop(receive)
            await error_response(refused.error)(scope, receive, send)
        except _GoneError:
            pass
        finally:
            self._held.pop(id(parts), None)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, parts: list[bytes]) -> None:
        """Read the parts of a body. Raises _RefusedError for one that is too large or too slow."""
        length = headers.get(b"content-length", b"0")
        self._check(parts, int(length) if length.isdigit() else 0)
        try:
            async with asyncio.timeout(self._limits.seconds):
                more, values = True, 0
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    self._held[id(parts)] = self._held.get(id(parts), 0) + len(parts[-1])
                    values += sum(map(parts[-1].count, _MARKS))
                    self._check(parts, self._held[id(parts)], values)
                    more = message.get("more_body", False)
        except TimeoutError:
            problem = f"the body did not arrive within {self._limits.seconds:g} seconds"
            raise _RefusedError(RequestError(408, problem, headers={"connection": "close"})) from None

    def _check(self, parts: list[bytes], size: int, values: int = 0) -> None:
        """Raise _RefusedError for a body of this size, or where it is too much beside all others."""
        if size > self._limits.one or values > self._limits.values:
            most = f"{self._limits.one >> 20} MiB" if size > self._limits.one else f"{self._limits.values} JSON values"
            message = f"the body is larger than {most}"
            raise _RefusedError(RequestError(413, message, headers={"connection": "close", **NO_RETRY}))
        others = sum(self._held.values()) - self._held.get(id(parts), 0)
        if size and others + size > self._limits.all:  # a request without a body, such as /health, always passes
            message = "the server holds too many large requests; try again later"
            raise _RefusedError(RequestError(429, message, headers={"connection": "close", "retry-after": "5"}))

    async def _drop(self, receive: Receive) -> None:
        """Read the rest of a body without keeping it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_seconds):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass


class _RefusedError(Exception):
    def __init__(self, error: RequestError) -> None:
        super().__init__(error.message)
        self.error = error


class _GoneError(Exception):
    """The client has closed its connection."""


def _whole(parts: list[bytes], receive: Receive) -> Receive:
    """What gives the whole body first, then what the client does. It empties `parts`."""
    given = False

    async def receive_whole() -> Message:
        nonlocal given
        if given:
            return await receive()
        given, body = True, b"".join(parts)
        parts.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole
