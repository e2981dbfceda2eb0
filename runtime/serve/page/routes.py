"""The routes of the page: three static files."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PATHS = tuple(_FILES)
_HEADERS = {
    "content-security-policy": (  # it runs its own script alone, and reaches its own server alone
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    for path, (name, kind) in _FILES.items():
        app.get(path, include_in_schema=False)(_serve(Path(__file__).with_name(name).read_bytes(), kind))


def _serve(data: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def static_file() -> Response:
        return Response(data, headers=_HEADERS, media_type=kind)

    return static_file
