"""A link as a loop reads it: all that is there, and never for ever."""

from __future__ import annotations

import socket

import pytest

from lbhost import control
from lbhost.packet_link import AT_ONCE, PacketLink

pytestmark = pytest.mark.anyio


async def test_who_sends_without_end_does_not_keep_the_loop() -> None:
    ours, theirs = control.socketpair()
    taken: list[bytes] = []

    def endless(end: socket.socket) -> bytes:
        assert len(taken) < 10 * AT_ONCE, "it is taken from for ever"
        return b"more"

    with theirs:
        link = PacketLink(ours, endless, taken.append, lambda: None, lambda error: None)
        link.drain()
        assert len(taken) == AT_ONCE
        link.drain()
        assert len(taken) == 2 * AT_ONCE, "it goes on in its next turn"
        link.close()


async def test_what_is_there_is_taken_in_one_go_and_the_end_is_told_once() -> None:
    ours, theirs = control.socketpair()
    taken: list[bytes] = []
    ends: list[None] = []

    def receive(end: socket.socket) -> bytes | None:
        return end.recv(100) or None

    with theirs:
        for number in range(10):
            theirs.send(b"%d" % number)
    link = PacketLink(ours, receive, taken.append, lambda: ends.append(None), lambda error: None)
    link.drain()
    link.drain()
    assert taken == [b"%d" % number for number in range(10)]
    assert len(ends) == 1
