"""A worker's data link: whole frames in, frames out, and no waiting for a slow gateway."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from lbhost import wire
from lbhost.worker import links
from lbhost.worker.links import DataLink


@pytest.fixture
def pair() -> Iterator[tuple[DataLink, socket.socket]]:
    theirs, ours = socket.socketpair()
    link = DataLink(0, ours)
    yield link, theirs
    link.close()
    theirs.close()


def test_messages_come_whole_however_they_are_cut(pair: tuple[DataLink, socket.socket]) -> None:
    link, gateway = pair
    frames = wire.encode(wire.Cancel(1)) + wire.encode(wire.Cancel(2))
    received: list[wire.ToWorker] = []
    for byte in frames:
        gateway.sendall(bytes([byte]))
        received += link.receive()
    assert received == [wire.Cancel(1), wire.Cancel(2)]
    assert not link.closed


def test_end_of_file_closes_the_link_after_what_came_before(
    pair: tuple[DataLink, socket.socket],
) -> None:
    link, gateway = pair
    gateway.sendall(wire.encode(wire.Cancel(1)))
    gateway.shutdown(socket.SHUT_WR)
    received = link.receive()
    while not link.closed:
        received += link.receive()
    assert received == [wire.Cancel(1)]


def test_a_frame_of_nonsense_closes_the_link(pair: tuple[DataLink, socket.socket]) -> None:
    link, gateway = pair
    gateway.sendall(b"\x02\0\0\0hi")
    assert link.receive() == []
    assert link.closed


def test_what_a_slow_gateway_leaves_is_sent_later_and_in_order(
    pair: tuple[DataLink, socket.socket],
) -> None:
    link, gateway = pair
    frames = [bytes([n]) * 50_000 for n in range(40)]
    for frame in frames:
        link.send(frame)
    assert link.backlogged
    received = b""
    while len(received) < 40 * 50_000:
        received += gateway.recv(1 << 20)
        link.flush()
    assert received == b"".join(frames)
    assert not link.backlogged


def test_a_gateway_that_never_reads_loses_its_link(
    pair: tuple[DataLink, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_BACKLOG", 1_000_000)
    link, _ = pair
    for _ in range(40):
        link.send(bytes(50_000))
    assert link.closed


def test_sending_to_a_gone_gateway_closes_the_link(pair: tuple[DataLink, socket.socket]) -> None:
    link, gateway = pair
    gateway.close()
    link.send(b"frame")
    assert link.closed
