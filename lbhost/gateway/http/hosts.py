"""Which names this server answers to, and which web pages may use it. Pure.

A page can reach a server on this machine by letting its own name point to 127.0.0.1: only names
give that away, an address in Host cannot be faked by a page.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from urllib.parse import urlsplit

from lbhost.config import Settings
from lbhost.setting_values import words

ANY = "*"

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Hosts:
    """The names in Host that are this server's."""

    def __init__(self, settings: Settings, *, on_loopback: bool) -> None:
        """Where others can reach the server, its names are not known: all do, unless some are
        configured."""
        allowed = words(settings.allowed_hosts)
        self._any = ANY in allowed or not (allowed or on_loopback)
        self._names = {_name(host.encode()) for host in {*allowed, settings.host}}
        self._last: bytes | None = None
        """The newest that was allowed: most requests name the same."""

    def allow(self, host: bytes) -> bool:
        """Whether a Host header's value (name or address, maybe with a port) is this server."""
        if self._any or host == self._last:
            return True
        name = _name(host)
        if name is None or not (name in self._names or _is_local(name) or _is_address(name)):
            return False
        self._last = host
        return True


class Origins:
    """The web pages that may use this server."""

    def __init__(self, settings: Settings) -> None:
        self._allowed: AbstractSet[str] = words(settings.allowed_origins)

    def allow(self, origin: bytes, host: bytes) -> bool:
        """Whether pages of an origin may: they come from this host and port, or are configured."""
        given = origin.decode("latin-1").lower()
        if ANY in self._allowed or given in self._allowed:
            return True
        try:
            page = urlsplit(given)
            own = urlsplit(f"{page.scheme}://{host.decode('latin-1').lower()}")
            usual = _DEFAULT_PORTS.get(page.scheme)
            same_port = (page.port or usual) == (own.port or usual)
        except ValueError:
            return False
        return page.hostname is not None and page.hostname == own.hostname and same_port

    def headers_for(self, request: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What the answer to a request gets for browsers; nothing for pages that may not read it.

        A page of the host that was asked needs none: browsers let it read whatever comes.

        Args:
            request: its headers, names in lower case; of a cut-off head, those that came.
        """
        origins = [value for name, value in request if name == b"origin"]
        if len(origins) != 1 or not self.allow(origins[0], b""):
            return []
        return self.headers(origins[0])

    def headers(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """What tells a browser that an allowed page may read the answer."""
        return [
            (b"access-control-allow-origin", origin),
            (b"vary", b"Origin"),
            (
                b"access-control-expose-headers",
                b"x-request-id, x-lbhost-worker, retry-after, x-should-retry, "
                b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
                b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
                b"x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
            ),
        ]


def _name(host: bytes) -> str | None:
    """Host without its port, in lower case. None: not to be understood."""
    text = host.decode("latin-1").lower()
    if _is_address(text):
        return text  # the setting `host` may be a bare IPv6 address
    try:
        parts = urlsplit(f"//{text}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != text or parts.username is not None:
        return None
    return parts.hostname.rstrip(".") if parts.hostname else None


def _is_local(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
