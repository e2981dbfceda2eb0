"""Bounds the time in which the head of a request must arrive: uvicorn waits for ever, and each wait holds a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which closes a connection whose next request has begun and does not go on.

    h11 bounds the bytes of a head, which httptools, uvicorn's other choice, does not.
    """

    head_seconds = 20.0
    """Time from the connection, or from a later request's first byte, to the end of the head."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read on. Between two requests, uvicorn's own limit holds until something comes."""
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._stop()

    def _await_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
