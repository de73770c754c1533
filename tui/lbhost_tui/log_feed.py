"""What one worker's processes write, for as long as somebody looks at it. Draws nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from textual.message import Message

from lbhost.errors import OtherVersionError, ServerGoneError
from lbhost.status import LogLine
from lbhost_tui.client import AdminClient, RefusedError
from lbhost_tui.messages import LogArrived

GATHER_S = 0.2
"""Lines that come within this time reach the screen together."""
BACKLOG = 1000
"""Lines: as many as the server keeps."""
AGAIN_S = 2.0
"""After a stream that has ended: the worker, or the server, may come back."""


class LogFeed:
    """Follows one worker's log at a time, or none."""

    def __init__(self, client: AdminClient, post: Callable[[Message], object]) -> None:
        self._client = client
        self._post = post
        self._worker: int | None = None
        self._turned = asyncio.Event()

    def turn(self, worker: int | None) -> None:
        """Follow this worker's from now on; None: nobody's."""
        if worker != self._worker:
            self._worker = worker
            self._turned.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._turned.clear()
            tasks: set[asyncio.Task[Any]] = {asyncio.create_task(self._turned.wait())}
            if self._worker is not None:
                tasks.add(asyncio.create_task(self._follow(self._worker)))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, worker: int) -> None:
        """All that is kept, then every new line; all once more where the stream has ended: it may
        be another server's by then."""
        while True:
            gathering = _Gathering(worker, self._post)
            try:
                async with aclosing(self._client.log(worker, None, BACKLOG)) as lines:
                    async for line in lines:
                        gathering.add(line)
            except (RefusedError, ServerGoneError, OtherVersionError):
                await asyncio.sleep(AGAIN_S)
            finally:
                gathering.close()


class _Gathering:
    """Lines of one stream, told some at a time."""

    def __init__(self, worker: int, post: Callable[[Message], object]) -> None:
        self._worker = worker
        self._post = post
        self._lines: list[LogLine] = []
        self._first = True
        self._timer: asyncio.TimerHandle | None = None

    def add(self, line: LogLine) -> None:
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._tell)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        self._post(LogArrived(self._worker, tuple(self._lines), first=self._first))
        self._lines.clear()
        self._first = False
