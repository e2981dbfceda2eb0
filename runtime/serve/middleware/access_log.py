"""One line for each request on stderr: method, path, status, seconds, tokens. No text of prompts or answers."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime.serve.metrics import Metrics
    from runtime.serve.protocol.chat_response import Counts

CLIENT_GONE = 499
"""Status in log and metrics of a request whose client did not wait for the answer, as nginx has it."""
_LONGEST_PATH = 200


class AccessLog:
    """Writes the log, and counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, start, status, complete = scope.setdefault("state", {}), time.monotonic(), CLIENT_GONE, False

        async def watched(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))

        try:
            await self._app(scope, receive, watched)
        except BaseException:
            status, complete = 500, True
            raise
        finally:
            status = status if complete else CLIENT_GONE
            self._metrics.request(getattr(scope.get("route"), "path", "other"), status)
            sys.stderr.write(_line(scope, status, time.monotonic() - start, state) + "\n")


def _line(scope: Scope, status: int, seconds: float, state: dict[str, object]) -> str:
    path = (scope.get("raw_path") or b"").decode("latin-1").encode("ascii", "backslashreplace").decode()
    counts: Counts | None = state.get("counts")  # type: ignore[assignment]
    tokens = f" {counts.prompt}+{counts.completion} tokens" if counts is not None else ""
    error = f" ({state['error']})" if "error" in state else ""
    return f"{scope['method']} {path[:_LONGEST_PATH]} {status} {seconds:.3f} s{tokens}{error}"
