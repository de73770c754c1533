"""What the processes of one worker have written: the last lines, kept and passed on to our log.

Owns the reading end of a process's standard output and error. Reading is slow on purpose: who
floods its output holds up nobody, and loses lines, which are counted.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from lbhost import log
from lbhost.status import LogLine
from lbhost.supervisor.journal import Journal
from lbhost.supervisor.log_allowance import LogAllowance
from lbhost.supervisor.output_lines import Splitter, Written, read

KEPT = 1000
"""Lines of one worker."""
KEPT_CHARACTERS = 256 * 1024
AT_ONCE = 32 * 1024
"""Bytes that are read at a time; a line of ours is no longer."""
LINES_AT_ONCE = 100
PAUSE_S = 0.05
"""Between two reads."""
LAST_READS = 16
"""Of what a process leaves behind: more than its socket holds."""


class Output(Journal[LogLine]):
    """One worker's, over all of its processes."""

    def __init__(self, worker: int, clock: Callable[[], float] = time.time) -> None:
        super().__init__(KEPT)
        self._worker = worker
        self._clock = clock
        self._characters = 0
        self._allowance = LogAllowance()
        self._epoch = 0
        self._splitter = Splitter()
        self._source: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None

    def open(self, epoch: int) -> socket.socket:
        """The end that a new process writes to. What the one before has left is read first.

        Raises:
            OSError: no socket is left.
        """
        self.drain()
        self._allowance.renew()  # the one before may have closed its end itself
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)  # llama.cpp's own lines, too, are lost rather than waited for
        self._source, self._epoch = ours, epoch
        asyncio.get_running_loop().add_reader(ours, self._readable)
        return theirs

    def drain(self) -> None:
        """The process is gone: read what it has left, and no more."""
        if self._source is None:
            return
        self._allowance.renew()
        for _ in range(LAST_READS):
            if not self._read():  # nothing more, or the end
                break
        self._take(self._splitter.end())
        self._let_go()

    def end(self) -> None:
        """The worker is gone: let every reader end."""
        self.drain()
        self.close()

    def add(self, written: Written) -> None:
        """Append what was written, and pass it on to the log, unless that is flooded."""
        for text in written.lines:
            self._append(written.level, text)
        name = f"worker {self._worker}"
        size = sum(map(len, written.lines))
        if written.fields is not None:
            size = max(size, sum(len(str(value)) for value in written.fields.values()))
        if not self._allowance.takes(size, len(written.lines), time.monotonic()):
            return
        if missing := self._allowance.left_out():
            log.pass_on(f"{name}: ({missing} lines are not here: it writes too much)")
        if written.fields is None:
            log.pass_on(f"{name}: {written.lines[0]}")
        else:
            log.relay(written.fields, written.level, name)

    def _append(self, level: str, text: str) -> None:
        self._seq += 1
        if len(self._ring) == KEPT:
            self._forget_oldest()
        line = LogLine(
            seq=self._seq, time=self._clock(), epoch=self._epoch, level=level, message=text
        )
        self._ring.append(line)
        self._characters += len(text)
        while self._characters > KEPT_CHARACTERS:
            self._forget_oldest()
        self._wake()

    def _forget_oldest(self) -> None:
        self._characters -= len(self._ring.popleft().message)

    def _readable(self) -> None:
        assert self._source is not None
        if self._read() == b"":
            self._take(self._splitter.end())
            self._let_go()
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._source)
        self._pause = loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if self._source is not None:
            asyncio.get_running_loop().add_reader(self._source, self._readable)

    def _read(self) -> bytes | None:
        """Read once, and take it. None: nothing is there now; empty: nothing will come any more."""
        assert self._source is not None
        try:
            data = self._source.recv(AT_ONCE)
        except BlockingIOError:
            return None
        except OSError:  # reset: the other side is gone
            return b""
        self._take(self._splitter.feed(data))
        return data

    def _take(self, lines: list[bytes]) -> None:
        """The last words tell most."""
        told: list[Written] = []
        left, room = len(lines), LINES_AT_ONCE
        while left and room > 0:
            left -= 1
            written = read(lines[left])
            if written is not None and written.lines:
                told.append(written)
                room -= len(written.lines)
        if left:
            self.add(Written("warning", (f"({left} lines at once were left out)",)))
        for written in reversed(told):
            self.add(written)

    def _let_go(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._source is not None:
            asyncio.get_running_loop().remove_reader(self._source)
            self._source.close()
            self._source = None
