"""The gateway's side of one helper process: start it, give it a job, end it.

Owns the process and its link. Keeps no queue and decides nothing about restarts (helpers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from lbhost.errors import HelperGoneError, WireError
from lbhost.gateway.prompt import helper_messages as messages
from lbhost.linux import oom_score
from lbhost.sandbox.environment import scrubbed

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "lbhost.gateway.prompt.helper")

START_S = (60.0, 600.0)
"""Seconds until the vocabulary must be loaded, the first time and at most; it takes half a second
on a quiet box."""


OOM_SCORE = 500
"""When memory runs out, the kernel should end a helper before a worker or the gateway."""


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a helper needs of it: no keys of ours or of others. One malloc arena saves memory."""
    return {**scrubbed(environ), "MALLOC_ARENA_MAX": "1"}


class HelperProcess:
    """One process. After any HelperGoneError only `end` may be called."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.begun = False
        """Whether it has worked on the last body that it was given."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self, setup: messages.Setup, limit_s: float = START_S[0]) -> None:
        """Until it is ready, for `limit_s` seconds at most. Raises HelperGoneError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
            ours.setblocking(False)
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            raise HelperGoneError(f"no process could be made: {error.strerror}") from error
        try:
            async with asyncio.timeout(limit_s):
                answer = await self.ask(setup)
        except TimeoutError as error:
            raise HelperGoneError(f"not ready after {limit_s:g} s") from error
        if not isinstance(answer, messages.Ready):
            reason = answer.message if isinstance(answer, messages.Failed) else "wrong answer"
            raise HelperGoneError(reason)

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        score = oom_score()
        with contextlib.nullcontext() if score is None else score.at(OOM_SCORE):
            return subprocess.Popen(
                [*self._command, "--fd", str(fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(fd,),
                env=environment(os.environ),
            )

    async def ask(self, message: messages.Setup | messages.Task) -> messages.Answer:
        """Send it and wait for the answer, without limit. Raises HelperGoneError."""
        assert self._writer is not None
        self.begun = False
        try:
            self._writer.write(messages.frame(message))
            await self._writer.drain()
            answer = await self._receive()
            if isinstance(answer, messages.Begun):
                self.begun = True
                answer = await self._receive()
        except (OSError, EOFError) as error:
            raise HelperGoneError(f"it ended: {await self._how_it_ended()}") from error
        except WireError as error:
            raise HelperGoneError(error.message) from error
        return answer

    async def _receive(self) -> messages.Answer:
        """Raises OSError, EOFError, WireError."""
        assert self._reader is not None
        head = await self._reader.readexactly(messages.LENGTH.size)
        (size,) = messages.LENGTH.unpack(head)
        if size > messages.MAX_ANSWER:
            raise WireError(f"its answer is {size} bytes long")
        return messages.answer(await self._reader.readexactly(size))

    async def end(self) -> None:
        """Kill and reap it, and close the link; being cancelled meanwhile waits for that."""
        if self._writer is not None:
            self._writer.transport.abort()
        if self._process is None:
            return
        self._process.kill()
        cancelled: asyncio.CancelledError | None = None
        while self._process.returncode is None:
            try:
                await self._reaped()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _how_it_ended(self) -> str:
        """For a person. A process that only closed its link is killed for it."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._reaped()
        code = self._process.returncode
        if code is None:
            return "the link is closed"
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"

    async def _reaped(self) -> None:
        """A dead process is reaped within milliseconds; nothing here may block the loop."""
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(0.002)
