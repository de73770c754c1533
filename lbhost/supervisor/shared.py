"""What the pools of one server have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from lbhost.board import Board
from lbhost.supervisor.children import Children
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.worker_ids import WorkerIds


class Changes:
    """Lets those who wait for something look again whenever anything has changed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Something has changed."""
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at after every change."""
        while not condition():
            await self._next.wait()


@dataclass(frozen=True)
class Shared:
    """See the module."""

    board: Board
    ids: WorkerIds
    homes: Homes
    children: Children
    events: EventLog
    changes: Changes = field(default_factory=Changes)
