"""Which hosts a download may ask: those that the server's owner has named, at public addresses only.

A request must not reach what only the server can reach (server-side request forgery). So a host must be named by the
owner, each of its addresses must be public, and the connection goes to an address that was checked: a name that is
looked up twice could change in between.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, urlsplit

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Resolve: TypeAlias = "Callable[[str, int], list[str]]"
"""From a host and a port to addresses that may be asked; raises InputError where there are none."""

_PORTS = {"http": 80, "https": 443}
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
# Reserved since this Python was written, or only there for some: RFC 6890, RFC 7526, RFC 9637.
_SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True)
class Address:
    """Where a URL leads."""

    secure: bool
    """Whether it is https."""
    host: str
    """Host in ASCII and lower case; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""


def parse_domains(domains: Iterable[str]) -> frozenset[tuple[str, int | None]]:
    """Read names of allowed domains, such as "example.org" (ports 80 and 443) or "example.org:8080".

    Subdomains are named apart. Raises InputError for anything else, such as a URL.
    """
    return frozenset(_parse_domain(domain) for domain in domains)


def _parse_domain(domain: str) -> tuple[str, int | None]:
    bare = domain.strip()
    try:
        parts = urlsplit(f"//{bare}")
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except (ValueError, UnicodeError):
        host, port = "", None
    if not host or parts.path or parts.query or parts.fragment or "@" in bare:
        raise InputError(f"--allow-media-domains {domain}: is not a domain; give names such as example.org")
    return host, port


def parse_url(url: str, domains: frozenset[tuple[str, int | None]]) -> Address:
    """Take a URL of an allowed domain apart. Raises InputError for any other.

    Refused too is what programs read differently: user names, backslashes, white space and control characters.
    """
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise InputError("has white space, a backslash or a control character; percent-encode it")
    try:
        parts = urlsplit(url)
        host, port = _ascii_host(parts.hostname or ""), parts.port
    except (ValueError, UnicodeError) as error:
        raise InputError(f"is not a URL ({error})") from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        raise InputError("is neither a data URI nor an http or https URL")
    if "@" in parts.netloc:
        raise InputError("has a user name, which is not sent; remove it")
    if (host, port) not in domains and not ((host, None) in domains and port in (None, *_PORTS.values())):
        raise InputError(f"{parts.netloc} is not a domain that this server may fetch from; send a data URI")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    return Address(scheme == "https", host, _PORTS[scheme] if port is None else port, target)


def _ascii_host(host: str) -> str:
    """A host in ASCII and lower case, without the root's dot. Raises ValueError for what is no host."""
    plain = host if host.isascii() else host.encode("idna").decode()
    plain = plain.lower().removesuffix(".")
    if plain and not _HOST.fullmatch(plain):
        raise ValueError(f"{host} is not a host")
    return plain


def resolve_public(
    host: str, port: int, look_up: Callable[..., Iterable[tuple[object, ...]]] = socket.getaddrinfo
) -> list[str]:
    """Look up the addresses of a host. Raises InputError if there is none, or if any of them is not public."""
    try:
        found = [str(entry[4][0]) for entry in look_up(host, port, type=socket.SOCK_STREAM)]  # type: ignore[index]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host} has no address ({error})") from error
    addresses = list(dict.fromkeys(found))
    if not addresses:
        raise InputError(f"{host} has no address")
    if not all(is_public(address) for address in addresses):
        raise InputError(f"{host} is not at a public address; send a data URI")
    return addresses


def is_public(address: str) -> bool:
    """Tell whether an IP address is one that the whole internet reaches; so is an IPv4 address in an IPv6 one."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in _NAT64:
            inner = IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed.scope_id or parsed.is_site_local:
            return False
    return parsed.is_global and not (
        parsed.is_private
        or parsed.is_loopback
        or parsed.is_link_local
        or parsed.is_multicast
        or parsed.is_reserved
        or parsed.is_unspecified
        or any(parsed in network for network in _SPECIAL)
    )
