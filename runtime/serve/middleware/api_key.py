"""Lets requests pass that know the API key."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from runtime.serve.page.routes import PATHS
from runtime.serve.protocol.error_response import error_response
from runtime.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = (*PATHS, "/health", "/docs", "/openapi.json", "/version")
"""Paths that show nothing of the model's answers, and need no key."""


class ApiKey:
    """Answers 401 unless a request has the header `Authorization: Bearer KEY`. Comparing takes constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        given = dict(scope["headers"]).get(b"authorization", b"") if scope["type"] == "http" else self._expected
        scheme, _, key = given.partition(b" ")
        if scope.get("path") in OPEN_PATHS or hmac.compare_digest(scheme.title() + b" " + key.strip(), self._expected):
            await self._app(scope, receive, send)
            return
        headers = {"www-authenticate": "Bearer"}
        error = RequestError(
            401, "the header Authorization: Bearer KEY is missing or wrong", code="invalid_api_key", headers=headers
        )
        await error_response(error)(scope, receive, send)
