"""What only the gateway knows, asked over its control link: the live requests, and their end.

Owns the open questions: few at a time, each with a time limit, so that a gateway that is stuck
or gone costs whoever asked a clear error, and the supervisor nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lbhost import control
from lbhost.errors import GatewaySilentError, RequestNotFoundError
from lbhost.status import Requests, RequestStatus

ANSWER_S = 2.0
"""All pages of one answer together have this long."""
OPEN = 64
"""Questions at a time."""
MOST = 4096
"""Requests in one answer."""

_Answer = control.ToldRequests | control.Cancelled


class Questions:
    """Asks the gateway that is there now."""

    def __init__(self, send: Callable[[control.Control], bool], limit_s: float = ANSWER_S) -> None:
        """`send` gives the gateway a message; False: it is not there, or its link is full."""
        self._send = send
        self._limit_s = limit_s
        self._numbers = 0
        self._open: dict[int, asyncio.Future[_Answer]] = {}

    def told(self, answer: _Answer) -> None:
        """An answer has come; too late, it is dropped."""
        waiting = self._open.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def lost(self) -> None:
        """The gateway is gone: nobody will answer."""
        for waiting in self._open.values():
            if not waiting.done():
                waiting.set_exception(GatewaySilentError("the gateway has just ended"))

    async def requests(self, limit: int = MOST) -> Requests:
        """The live requests, the oldest first, at most `limit`. Raises GatewaySilentError."""
        found: list[RequestStatus] = []
        after = 0
        async with self._within():
            while True:
                page = await self._ask(control.AskRequests(self._number(), after))
                assert isinstance(page, control.ToldRequests)
                found += page.requests
                if page.next is None or len(found) >= limit:
                    return Requests(requests=found[:limit], total=page.total)
                after = page.next

    async def cancel(self, request: str) -> str:
        """End the requests of that id. Raises GatewaySilentError, RequestNotFoundError."""
        async with self._within():
            done = await self._ask(control.CancelRequest(self._number(), request))
        assert isinstance(done, control.Cancelled)
        if not done.count:
            raise RequestNotFoundError(f"no live request has the id {request!r}")
        more = "" if done.count == 1 else f" ({done.count} of that id)"
        return f"request {request} is ended{more}"

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    @asynccontextmanager
    async def _within(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError as error:
            limit = f"{self._limit_s:g} s"
            raise GatewaySilentError(f"the gateway did not answer within {limit}") from error

    async def _ask(self, question: control.AskRequests | control.CancelRequest) -> _Answer:
        if len(self._open) >= OPEN:
            raise GatewaySilentError(f"{OPEN} questions to the gateway are open already")
        if not self._send(question):
            raise GatewaySilentError("the gateway is not there to answer; try again in a moment")
        waiting: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._open[question.number] = waiting
        try:
            return await waiting
        finally:
            del self._open[question.number]
