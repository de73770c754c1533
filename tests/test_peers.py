"""Who gets to the admin API: checked by the kernel's word on who has connected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from lbhost.supervisor import peers
from lbhost.supervisor.admin import Admin, AdminServer
from lbhost.supervisor.peers import Peer, may_command
from lbhost.supervisor.runtime import RuntimeDir
from serving import wait_for
from test_admin import Noted

pytestmark = pytest.mark.anyio

ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as made:
    made.connect(sys.argv[1])
    made.sendall(b"GET /status HTTP/1.1\\r\\nhost: lbhost\\r\\nconnection: close\\r\\n\\r\\n")
    print(made.makefile("rb").read().decode())
"""


def test_the_kernel_says_who_has_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peers.peer_of(ours) == Peer(os.getpid(), os.geteuid())


def test_this_user_and_root_may_and_others_may_not() -> None:
    assert may_command(Peer(os.getpid(), os.geteuid()))
    assert may_command(Peer(1, 0))
    assert may_command(Peer(0, os.geteuid()))  # of another PID namespace
    assert not may_command(Peer(1, os.geteuid() + 1))


def test_children_and_theirs_may_not() -> None:
    inner = "import subprocess; subprocess.run(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", inner], process_group=0) as child:
        try:
            below = _child_of(child.pid)
            assert not may_command(Peer(child.pid, os.geteuid()))
            assert not may_command(Peer(below, os.geteuid()))
            assert may_command(Peer(os.getppid(), os.geteuid()))
        finally:
            os.killpg(child.pid, 9)


def test_who_has_ended_may_not() -> None:
    """A child connects, gives the connection on, and is gone before anybody looks."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert not may_command(Peer(child.pid, os.geteuid()))


def _child_of(pid: int) -> int:
    children = wait_for(lambda: psutil.Process(pid).children(), "its child")
    return int(children[0].pid)


@asynccontextmanager
async def admin(folder: Path) -> AsyncIterator[Path]:
    """An admin API; its socket."""
    runtime = RuntimeDir.claim(folder / "run")
    server = AdminServer(Admin(Noted()), runtime.listen())
    await server.start()
    try:
        yield runtime.socket_path
    finally:
        await server.stop()
        runtime.release()


async def test_a_child_is_told_no_and_nothing_is_done(tmp_path: Path) -> None:
    async with admin(tmp_path) as path:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ASK, str(path)), stdout=subprocess.PIPE
        )
        answer, _ = await asyncio.wait_for(child.communicate(), 60.0)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b'"this socket is for the server\'s own user"' in answer
        assert path.stat().st_mode & 0o777 == 0o600


WHOLE = b"GET /nothing HTTP/1.1\r\nhost: lbhost\r\n\r\n"


@pytest.mark.parametrize(
    "unfinished",
    [b"", b"GET /sta", b"POST /scale HTTP/1.1\r\nhost: lbhost\r\ncontent-length: 9\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_who_does_not_end_what_it_asks_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfinished: bytes
) -> None:
    async with admin(tmp_path) as path:
        kept, asks = await asyncio.open_unix_connection(path)
        asks.write(WHOLE)
        head = await asyncio.wait_for(kept.readuntil(b"\r\n\r\n"), 60.0)
        assert b"404" in head
        monkeypatch.setattr(peers, "UNFINISHED_S", 0.05)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(unfinished)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60.0) == b""
        asks.write(WHOLE[:-2])  # its second request: for that, too, there is no more time
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1" not in await asyncio.wait_for(kept.read(), 60.0)
        for end in (writer, asks):
            end.close()
