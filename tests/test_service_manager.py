"""What systemd is told, when it listens late or not at all. (The e2e tests hear a whole life.)"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from lbhost.supervisor.service_manager import ServiceManager


def heard(manager: socket.socket) -> list[str]:
    """All that has come."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(manager.recv(4096).decode())
    return found


def test_what_a_full_queue_does_not_take_is_said_again(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
    ):
        manager.bind(address)
        manager.setblocking(False)
        others.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                others.sendto(b"another service's", address)
        ours = ServiceManager({"NOTIFY_SOCKET": address})
        ours.ready("serving")
        assert not any("READY" in line for line in heard(manager))
        ours.alive()
        assert heard(manager) == ["READY=1\nSTATUS=serving"]
        ours.alive()
        assert heard(manager) == [], "once is enough, and nobody asked for signs of life"
        ours.close()


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nowhere")}):
        manager = ServiceManager(environ)
        manager.ready("serving")
        manager.alive()
        manager.stopping(1.0)
        manager.close()
        manager.alive()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_who_has_handed_over_gives_no_sign_of_life(tmp_path: Path, kind: str) -> None:
    """systemd takes them of the main process alone, and warns of each that another sends."""
    address = str(tmp_path / "notify") if kind == "path" else f"\0lbhost-test-{os.getpid()}"
    told = address.replace("\0", "@")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        ours = ServiceManager({"NOTIFY_SOCKET": told, "WATCHDOG_USEC": "30000000"})
        ours.alive()
        assert heard(manager) == ["WATCHDOG=1"]
        ours.hand_over(77)
        ours.alive()
        assert heard(manager) == ["MAINPID=77"]
        ours.close()
