"""Downloads one file from an allowed domain, of bounded size, in bounded time."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from console.errors import InputError
from runtime.serve.media.addresses import parse_url

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from runtime.serve.media.addresses import Address, Resolve
    from runtime.serve.media.limits import MediaLimits

_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "exaone-docvlm", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


def fetch(url: str, domains: frozenset[tuple[str, int | None]], limits: MediaLimits, resolve: Resolve) -> bytes:
    """Download a URL. Raises InputError, for the client, for all that can go wrong.

    Each redirect is checked as the first URL is. Proxies of the environment are not used.
    """
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        address = parse_url(url, domains)
        try:
            found = _get(address, resolve(address.host, address.port), deadline, limits.bytes)
        except TimeoutError:
            raise InputError(f"took more than {limits.seconds:g} seconds to download; send a data URI") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(f"cannot be downloaded ({str(error) or type(error).__name__})") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise InputError(f"is redirected more than {limits.redirects} times")


def _get(address: Address, addresses: list[str], deadline: float, most: int) -> bytes | str:
    """Ask one server. Returns the file, or where it is instead."""
    connected = _connect(address, addresses, deadline)
    try:
        connection = http.client.HTTPConnection(address.host, address.port)
        connection.sock = _Timed(connected, deadline)  # all that http.client uses of it
        connection.default_port = 443 if address.secure else 80  # of the Host header
        connection.request("GET", address.target, headers=_HEADERS)
        with connection.getresponse() as response:
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                return location
            if response.status != http.client.OK:
                raise InputError(f"cannot be downloaded (status {response.status})")
            return _read(response, most)
    finally:
        connected.close()


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """Read the body. Raises InputError for more bytes than allowed, or fewer than promised."""
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise InputError("comes compressed, which was not asked for")
    promised = response.length
    body = bytearray()
    while len(body) <= most and (promised or 0) <= most:
        piece = response.read(_CHUNK)
        if not piece:
            if promised is not None and len(body) < promised:
                raise InputError(f"ends after {len(body)} of {promised} bytes")
            return bytes(body)
        body += piece
    raise InputError(f"has more than {most} bytes; send a smaller file")


def _connect(address: Address, addresses: list[str], deadline: float) -> socket.socket:
    """Connect to the first address that answers; TLS checks the certificate of the host's name."""
    failure: OSError = OSError("no address")
    for ip in addresses:
        try:
            plain = socket.create_connection((ip, address.port), _left(deadline))
            break
        except OSError as error:
            failure = error
    else:
        raise failure
    if not address.secure:
        return plain
    try:
        plain.settimeout(_left(deadline))
        return _tls().wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Timed:
    """What http.client needs of a socket. All reads and writes together end at one deadline.

    A timeout of the socket itself would begin anew at each byte of a server that sends slowly.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connected, deadline

    def sendall(self, data: ReadableBuffer) -> None:
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._deadline))

    def close(self) -> None:
        """Leave it open: the response is read after http.client has closed the connection."""


class _Reader(io.RawIOBase):
    """Reads a socket until a deadline."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connected, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)
