"""The socket that clients connect to: bound before anything else, kept across gateways.

Connections that arrive while a gateway is being replaced wait in its backlog.
"""

from __future__ import annotations

import socket

from lbhost.errors import StartupError

BACKLOG = 4096


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    A host name with an IPv4 address gets that one: people type 127.0.0.1 next.

    Raises:
        StartupError: unknown or impossible host, port in use, not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"cannot listen on {host}: {error.strerror or error}") from error
    except UnicodeError as error:  # a label too long, or empty
        raise StartupError(f"cannot listen on {host}: not a host name") from error
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        hint = " (--port 0 picks a free one)" if "in use" in reason else ""
        where = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        raise StartupError(f"cannot listen on {where}: {reason.lower()}{hint}") from error
    return listener


def url(listener: socket.socket, host: str) -> str:
    """`http://HOST:PORT` with the real port; a wildcard address is shown as it was given."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
