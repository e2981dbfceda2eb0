"""Answers as server-sent events, as they come."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import Response

from console.progress import say
from runtime.serve.chat.waiting import ClientGoneError, while_connected
from runtime.serve.protocol.errors import RequestError, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from runtime.serve.chat.exchange import Exchange

_BEAT = 10.0  # seconds of silence after which a comment says that the answer still comes
_PARTING = 2.0  # seconds for the last words to a client that may read no more


class EventStream(Response):
    """The response to a request with stream. An error after the begin is an event, then the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, close: Callable[[], None]) -> None:
        """Begin. close: is called when the stream has ended, however it did."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._exchange, self._close = exchange, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers while the client is there."""
        try:
            await while_connected(receive, self._send_answers(send), self._exchange.deadline)
        except ClientGoneError:
            pass
        except RequestError as error:
            scope["state"]["error"] = error.message
            await self._send_error(receive, send, error)
        finally:
            self._close()

    async def _send_answers(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        exchange, body = self._exchange, self._exchange.body
        envelope, usage = exchange.envelope, body.stream_options is not None and body.stream_options.include_usage
        await _send(send, b"".join(_event(envelope.opening(number)) for number in range(body.n)))
        last = time.monotonic()
        async for deltas in exchange.deltas(_BEAT):
            events = b"".join(_event(envelope.chunk(number, delta)) for number, delta in deltas)
            if not events and time.monotonic() - last >= _BEAT:
                events = b": the answer still comes\n\n"
            if events:
                await _send(send, events)
                last = time.monotonic()
        if usage:
            await _send(send, _event(envelope.usage(exchange.counts)))
        await _send(send, b"data: [DONE]\n\n", more=False)

    async def _send_error(self, receive: Receive, send: Send, error: RequestError) -> None:
        """Say what is wrong, and end. A client that reads no more is left."""
        with suppress(RequestError, ClientGoneError):
            words = b"event: error\n" + _event(error.body) + b"data: [DONE]\n\n"
            await while_connected(receive, _send(send, words, more=False), time.monotonic() + _PARTING)
            return
        say("a client read no more; its connection was closed")


def _event(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
