"""Control links: every message with its descriptors, ends of file, broken packets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from lbhost import control
from lbhost.config import Settings
from lbhost.errors import WireError
from lbhost.placement.placement import Placement

MESSAGES: list[control.Control] = [
    control.Configure(Settings(), "/models/a.gguf", "a", 2048),
    control.Serve(Settings(), (control.Configure(Settings(), "/models/a.gguf", "a", 2048),)),
    control.Fork(3, 9, Placement(cpus=(0, 1), threads=2)),
    control.Fork(0, 1, Placement(cpus=(5,), threads=1, gpu=2, gpu_uuid="GPU-1")),
    control.Loaded(1.5, 10**12, 8192),
    control.Hello(4711),
    control.Ready(),
    control.Failed("no memory"),
    control.Link(1, 2),
    control.Drain(),
    control.Drained(),
    control.Resume(),
    control.Leaving(1, 2),
    control.Ended(1, 2, by_its_work=True),
    control.Stop(30.0),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = control.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_arrives_as_sent(
    pair: tuple[socket.socket, socket.socket], message: control.Control
) -> None:
    control.send(pair[0], message)
    assert control.receive(pair[1]) == (message, [])


def test_packets_keep_their_bounds_and_order(pair: tuple[socket.socket, socket.socket]) -> None:
    for message in MESSAGES:
        control.send(pair[0], message)
    assert [control.receive(pair[1]) for _ in MESSAGES] == [(m, []) for m in MESSAGES]


def test_descriptors_travel_and_do_not_leak_into_children(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    read, write = os.pipe()
    control.send(pair[0], control.Link(0, 1), [write, read])
    os.close(write)
    os.close(read)
    packet = control.receive(pair[1])
    assert packet is not None
    message, fds = packet
    assert message == control.Link(0, 1)
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[0], b"through")
    assert os.read(fds[1], 100) == b"through"
    for fd in fds:
        os.close(fd)


def test_end_of_file_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    control.send(pair[0], control.Ready())
    pair[0].close()
    assert control.receive(pair[1]) == (control.Ready(), [])
    assert control.receive(pair[1]) is None


def test_nothing_there_yet_on_a_nonblocking_link(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        control.receive(pair[1])


def test_sending_to_nobody_fails_without_a_signal(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[1].close()
    with pytest.raises(BrokenPipeError):
        control.send(pair[0], control.Ready())


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"{}",
        msgspec.msgpack.encode({"type": "no-such"}),
        msgspec.msgpack.encode({"type": "hello", "pid": "four"}),
        msgspec.msgpack.encode([1, 2, 3]),
    ],
)
def test_what_is_no_message_is_an_error(
    pair: tuple[socket.socket, socket.socket], packet: bytes
) -> None:
    pair[0].send(packet)
    with pytest.raises(WireError):
        control.receive(pair[1])


def test_an_oversized_packet_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * control.MAX_PACKET)
    pair[0].send(b"x" * (control.MAX_PACKET + 1))
    with pytest.raises(WireError):
        control.receive(pair[1])
