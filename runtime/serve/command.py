"""`python -m runtime serve`: a server from its start to its end."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from console.errors import INTERRUPTED, TERMINATED, InputError
from console.progress import say
from runtime.serve.app import AppSettings, build_app
from runtime.serve.daemon import in_daemon
from runtime.serve.media import Media
from runtime.serve.middleware.head_limit import TimedProtocol
from runtime.serve.service import Service, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.decoding.drafts import DraftTokens
    from runtime.exported import ExportedModel

ENGINE_DIED = 1
"""Exit code where the engine's thread has ended by itself."""
_LOOK = 0.2  # seconds between looks at the engine


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens, under which name, and how it stops."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """Port; 0 for any that is free."""
    name: str | None = None
    """Name of the model; None for its folder's."""
    draft_tokens: DraftTokens = 0
    """Draft tokens ahead of a decoder call while one answer runs."""
    drain_seconds: float = 30
    """Time for running answers after SIGTERM."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    """How much the server takes on."""
    app: AppSettings = field(default_factory=AppSettings)
    """Who may ask."""
    media: Media = field(default_factory=Media)
    """Where images come from."""


def serve(model: ExportedModel, settings: ServeSettings) -> int:
    """Serve until a signal comes. Returns the exit code: 0 where all answers were finished, else 130 or 143.

    1 where the engine died. Raises InputError for an address that cannot be listened at, and for a model that does not
    load.
    """
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}, loading {model.folder}")
    name = settings.name or model.folder.resolve().name
    service = Service(model, name, settings.limits, settings.media, settings.draft_tokens)
    code = asyncio.run(_Run(service, settings).until_stopped(listener))
    if any(thread.daemon for thread in threading.enumerate()):
        _leave(code)
    return code


class _Run:
    """A server while it runs."""

    def __init__(self, service: Service, settings: ServeSettings) -> None:
        config = uvicorn.Config(
            build_app(service, settings.app),
            http=TimedProtocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self._server, self._service, self._settings = _Server(config), service, settings
        self._signal: asyncio.Future[int]

    async def until_stopped(self, listener: socket.socket) -> int:
        """Load, serve, drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        self._signal = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        try:
            return await self._watch()
        finally:
            await asyncio.to_thread(self._service.close)
            self._server.should_exit = True
            await serving
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _watch(self) -> int:
        """Wait for what ends the server."""
        loading = in_daemon(self._service.load, "load")
        await asyncio.wait((loading, self._signal), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what went wrong
            say(f"ready: {self._service.name}")
        while not self._signal.done():
            await asyncio.wait((self._signal,), timeout=_LOOK)
            if self._service.status == "dead":
                say("error: the engine has died; its error is above")
                return ENGINE_DIED
        say(f"stopping: running answers have {self._settings.drain_seconds:g} seconds; a second signal ends them")
        if await self._service.drain(self._settings.drain_seconds):
            return 0
        say("some answers were not finished")
        return INTERRUPTED if self._signal.result() == signal.SIGINT else TERMINATED

    def _stop(self, number: int) -> None:
        if not self._signal.done():
            self._signal.set_result(number)
        else:
            self._service.give_up()


class _Server(uvicorn.Server):
    """A server that leaves signals alone: it would close its port before running answers are finished."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def _leave(code: int) -> NoReturn:
    """End the process beside threads that still load weights or open images.

    Python would unwind them, and native code in them answers that with SIGABRT.
    """
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def _listen(host: str, port: int) -> socket.socket:
    """Listen at an address. Raises InputError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"--host {host}, --port {port}: cannot listen there ({error.strerror or error})") from error
