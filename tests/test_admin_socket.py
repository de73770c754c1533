"""A server whose runtime dir or socket is taken away makes itself reachable again."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from lbhost.client import AdminClient
from lbhost.errors import StartupError
from lbhost.supervisor import runtime
from lbhost.supervisor.admin import Admin, Commands
from lbhost.supervisor.admin_socket import AdminSocket
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.runtime import RuntimeDir
from supervising import Box, box

pytestmark = pytest.mark.anyio


def unlink(run: Path) -> None:
    (run / runtime.SOCKET_NAME).unlink()


def remove(run: Path) -> None:
    shutil.rmtree(run)


def remove_all_above(run: Path) -> None:
    shutil.rmtree(run.parent)


def rename(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replace_by_another_socket(run: Path) -> None:
    path = run / runtime.SOCKET_NAME
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


@pytest.mark.parametrize(
    "take", [unlink, remove, remove_all_above, rename, replace_by_another_socket]
)
def test_a_path_that_leads_elsewhere_is_seen_and_mended(
    tmp_path: Path, take: Callable[[Path], None]
) -> None:
    run = tmp_path / "above" / "run"
    claimed = RuntimeDir.claim(run)
    claimed.announce("http://127.0.0.1:8080")
    with claimed.listen():
        assert claimed.is_reachable()
        take(run)
        assert not claimed.is_reachable()
        with claimed.listen_again() as listener, socket.socket(socket.AF_UNIX) as client:
            assert claimed.is_reachable()
            assert (run / runtime.SOCKET_NAME).stat().st_mode & 0o777 == 0o600
            client.connect(str(run / runtime.SOCKET_NAME))
            listener.accept()[0].close()
            with pytest.raises(StartupError, match=r"at http://127\.0\.0\.1:8080 already runs"):
                RuntimeDir.claim(run)
    claimed.release()
    assert not run.exists()


def test_a_folder_that_another_server_has_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = RuntimeDir.claim(run)
    with first.listen():
        shutil.rmtree(run)
        second = RuntimeDir.claim(run)
        with second.listen():
            assert not first.is_reachable()
            with pytest.raises(StartupError, match="already runs"):
                first.listen_again()
            assert second.is_reachable()
        second.release()
        first.listen_again().close()
        assert first.is_reachable()
    first.release()
    assert not run.exists()


def told(running: Box, times: int) -> bool:
    """Whether it has said so often that its place was taken away."""
    return sum("taken away" in line for line in running.kinds("server")) == times


async def status_of(run: Path) -> str:
    """The state that a client learns who opens the path now."""

    def ask() -> str:
        with AdminClient(run) as client:
            return client.status().state

    return await asyncio.to_thread(ask)


async def test_a_socket_that_could_not_be_made_is_made_later(tmp_path: Path) -> None:
    """So it is where a server takes over from another one."""
    run = tmp_path / "run"
    runtime_dir, commands = RuntimeDir.claim(run), cast("Commands", None)
    admin_socket = AdminSocket(Admin(commands), runtime_dir, EventLog())
    await admin_socket.look_again()
    assert not runtime_dir.is_reachable(), "nobody has asked for it yet"
    remove(run)
    with pytest.raises(StartupError, match="cannot listen"):
        await admin_socket.start()
    await admin_socket.look_again()
    assert runtime_dir.is_reachable()
    reader, writer = await asyncio.open_unix_connection(run / runtime.SOCKET_NAME)
    writer.write(b"GET /nowhere HTTP/1.1\r\nhost: lbhost\r\n\r\n")
    async with asyncio.timeout(60):
        assert b"404" in await reader.readline()
    writer.close()
    await admin_socket.stop()
    runtime_dir.release()
    assert not run.exists()


@pytest.mark.parametrize("take", [unlink, remove])
async def test_a_server_that_lost_its_place_listens_there_again_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    async with box(tmp_path, monkeypatch) as running:
        reader, writer = await asyncio.open_unix_connection(run / runtime.SOCKET_NAME)
        writer.write(b"GET /events HTTP/1.1\r\nhost: lbhost\r\n\r\n")
        for times in (1, 2):
            take(run)
            await running.until(partial(told, running, times), "it says so")
            assert await status_of(run) == "ready"
        async with asyncio.timeout(60):
            while b"taken away" not in await reader.readline():
                pass  # who was connected stays connected
        writer.close()
        await writer.wait_closed()
    assert not run.exists()


async def test_a_server_whose_place_another_one_has_says_so_once_and_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def refused(running: Box) -> list[str]:
        return [line for line in running.kinds("server") if "cannot be administered" in line]

    monkeypatch.setattr("lbhost.supervisor.supervisor.REREAD_S", 0.0)
    async with box(tmp_path, monkeypatch) as running:
        shutil.rmtree(run)
        other = RuntimeDir.claim(run)
        await running.until(lambda: refused(running), "it says so")
        looks = running.server.events.last
        sampled = running.server.prepared.board.host.read(0)
        await running.until(
            lambda: running.server.prepared.board.host.read(0) != sampled, "it looks again"
        )
        assert len(refused(running)) == 1
        assert running.server.events.last == looks
        other.release()
        await running.until(partial(told, running, 1), "the place is free")
        assert await status_of(run) == "ready"
