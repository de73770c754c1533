from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filling import fill
from lbhost.stream import LINE_LIMIT, WHOLE_LIMIT, SafeStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            continue


def test_lines_arrive_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    out = SafeStream(writing)
    out.write("one\ntw")
    out.write("o\n")
    assert os.read(reading, 100) == b"one\ntwo\n"


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    out = SafeStream(writing)
    print("hello", file=out)
    assert out.dropped == 1


def test_a_pipe_that_others_fill_in_the_same_moment_does_not_block(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hopeful:
        """What poll has said just before the pipe was filled."""

        def register(self, fd: int, events: int) -> None: ...

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return [(pipe[1], select.POLLOUT)]

    fill(pipe[1])
    monkeypatch.setattr(select, "poll", Hopeful)
    out = SafeStream(pipe[1])
    writing = threading.Thread(target=out.write, args=("lost\n",), daemon=True)
    writing.start()
    writing.join(60)
    blocked = writing.is_alive()
    os.read(pipe[0], 1 << 16)
    writing.join(60)
    assert not blocked
    assert out.dropped == 1


def test_a_full_pipe_does_not_block_and_what_was_lost_is_told(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    taken = fill(writing)
    out = SafeStream(writing)
    out.write("lost\nlost too\n")
    assert out.dropped == 2
    while taken > 0:
        taken -= len(os.read(reading, taken))
    out.write("again\n")
    assert os.read(reading, 1000) == b"(2 lines could not be written)\nagain\n"
    assert out.dropped == 0


def test_a_full_disk_is_no_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        out = SafeStream(fd)
        out.write("line\n")
        assert out.dropped == 1
    finally:
        os.close(fd)


def test_a_closed_descriptor_is_no_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    out = SafeStream(pipe[1])
    out.write("line\n")
    assert out.dropped == 1
    assert not out.isatty()


def test_a_socket_that_nobody_reads_does_not_block() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = SafeStream(ours.fileno())
        while not out.dropped:
            out.write("y" * 1000 + "\n")
        assert theirs.recv(4) == b"yyyy"


LONG = "begin" + "ä" * WHOLE_LIMIT + "the error"


def test_a_long_line_keeps_its_end_on_a_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    SafeStream(writing).write(LONG + "\nnext\n")
    line, rest = os.read(reading, 1 << 16).split(b"\n", 1)
    assert LINE_LIMIT - 8 < len(line) < LINE_LIMIT
    assert line.decode().startswith("beginä")
    assert line.decode().endswith("äthe error")
    assert rest == b"next\n"


def test_a_traceback_is_whole_in_a_file_and_on_a_socket(tmp_path: Path) -> None:
    traceback = "x" * (WHOLE_LIMIT - 1) + "\n"
    path = tmp_path / "log"
    with path.open("wb") as file:
        SafeStream(file.fileno()).write(traceback + LONG + "\n")
    first, second = path.read_text().splitlines(keepends=True)
    assert first == traceback
    assert len(second.encode()) <= WHOLE_LIMIT
    ours, theirs = socket.socketpair()
    with ours, theirs:
        SafeStream(ours.fileno()).write(traceback)
        assert theirs.recv(WHOLE_LIMIT, socket.MSG_WAITALL).decode() == traceback


def test_a_socket_takes_a_long_line_whole_or_not_at_all() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = SafeStream(ours.fileno())
        taken = 0
        while not out.dropped:
            out.write("y" * (WHOLE_LIMIT - 1) + "\n")
            taken += 1 - out.dropped
        ours.shutdown(socket.SHUT_WR)
        read = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
        assert len(read) == taken * WHOLE_LIMIT
