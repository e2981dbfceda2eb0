"""The HTTP response that an error becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from runtime.serve.protocol.errors import to_json

if TYPE_CHECKING:
    from runtime.serve.protocol.errors import RequestError


def error_response(error: RequestError) -> Response:
    """Write an error as a response."""
    return Response(to_json(error.body), error.status, error.headers, media_type="application/json")
