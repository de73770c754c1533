"""The listening socket: what cannot be listened on is a line, not a traceback."""

from __future__ import annotations

import socket

import pytest

from lbhost.errors import StartupError
from lbhost.supervisor import listener


@pytest.mark.parametrize("host", ["x" * 70, "a..b", "no such host.invalid", "192.0.2.1"])
def test_a_host_that_cannot_be_is_one_line(host: str) -> None:
    with pytest.raises(StartupError) as caught:
        listener.bind(host, 0)
    assert caught.value.message.startswith(f"cannot listen on {host}")
    assert "\n" not in caught.value.message


def test_a_port_in_use_says_how_to_find_a_free_one() -> None:
    with listener.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartupError, match=rf":{port}: .*in use \(--port 0"):
            listener.bind("127.0.0.1", port)


def test_a_url_names_the_real_port() -> None:
    with listener.bind("localhost", 0) as bound:
        assert bound.family == socket.AF_INET
        port = bound.getsockname()[1]
        assert listener.url(bound, "localhost") == f"http://localhost:{port}"
        assert listener.url(bound, "::") == f"http://[::]:{port}"
