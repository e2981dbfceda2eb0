"""Ray: starts it on this machine, or joins a cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECT_STORE = 256 << 20  # bytes; what goes through it are numbers of shards and counts
_LONGEST_CONNECTING = 10.0  # seconds


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at an address. Raises InputError where that is not possible."""
    if address is not None and address.startswith("ray://"):  # its client cannot run Ray Data
        raise InputError(f"--address {address}: Ray's client is not enough; run this on a node, with --address auto")
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # of all systems: listen at 127.0.0.1 alone
    import ray
    from ray.data import DataContext

    here = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with _quiet():
        try:
            _reach(address)
            options = {"log_to_driver": False, "logging_level": logging.CRITICAL, **({} if address else here)}
            with _own_sigterm():
                ray.init(address or "local", **options)
        except Exception as error:  # Ray raises almost anything, a bare Exception where its node does not start
            where = "on this machine" if address is None else f"at --address {address}"
            raise InputError(f"Ray cannot be used {where} ({str(error).partition(chr(10))[0]})") from error
        DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray would try for minutes, or with "auto" for ever."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _latest_here()
    host, found, port = (address or "").rpartition(":")
    if found:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _LONGEST_CONNECTING).close()
        except OSError as error:
            raise OSError(f"nothing answers at {address}: {error}") from error


def _latest_here() -> str | None:
    """Address of the cluster that was started last on this machine, as Ray notes it; the cluster may have ended."""
    file = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray", "ray_current_cluster")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's own ones exit with other codes, and say nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
    except SystemExit:  # it came meanwhile
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Ray prints, from C++ and from threads, next to what it raises. What Python writes to stderr is kept."""
    sys.stderr.flush()
    kept = os.dup(2)
    encoding, errors = sys.stderr.encoding, "backslashreplace"
    with (
        open(kept, "w", encoding=encoding, errors=errors, buffering=1) as shown,  # noqa: PTH123 - a number, no path
        Path(os.devnull).open("w") as dropped,
    ):
        os.dup2(dropped.fileno(), 2)
        try:
            with redirect_stderr(shown), redirect_stdout(dropped):
                yield
        finally:
            shown.flush()
            os.dup2(kept, 2)
