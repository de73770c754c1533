"""The helper processes that prepare long bodies, and the bodies that wait for one.

A helper that dies, or is killed at its job's deadline, is replaced alone, and only the request
that it worked on fails. Callers that are cancelled leave the queue; a job that nobody waits for
any more is killed once it has run for longer than a new helper costs. The client goes next whose
bodies have had the least of the helpers' time: one that sends bombs waits behind itself alone.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from lbhost import log
from lbhost.errors import (
    DeadlineError,
    HelperGoneError,
    LbhostError,
    NotReadyError,
    PromptError,
    QueueFullError,
    WireError,
)
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.prompt.helper_messages import Answer, Prepared, Refused, Setup, Task
from lbhost.gateway.prompt.helper_process import COMMAND, START_S, HelperProcess
from lbhost.gateway.prompt.inputs import Inputs
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.prompt.questions import Told
from lbhost.gateway.scheduling.fairness import VirtualTokens, may_wait

MAX_WAITING = 64

BYTES_PER_S = 256 * 1024
"""Of a client's bodies, each waits as if it had come so much later as it is long: short ones go
first, none starves."""

ABANDONED_S = 0.5
"""How long a job may run after its caller left: a new helper costs about as much CPU time."""

BACKOFF_S = (0.1, 30.0)
"""First and longest wait before a helper that dies without a job is started again."""


def cpu_limit_s(body_bytes: int) -> int:
    """Seconds of CPU for one body: an honest one of 4 MB takes 2."""
    return 2 + body_bytes // (512 * 1024)


def deadline_s(body_bytes: int) -> float:
    """Seconds of wall clock for one body: helpers share their cores with busy workers."""
    return 3.0 * cpu_limit_s(body_bytes)


def start_limit_s(deaths: int) -> float:
    """Seconds that a helper may take to start, after so many that never worked: each time twice as
    long, or on a box that is slow enough all of them would be ended shortly before they are ready.
    """
    first, longest = START_S
    return min(longest, first * 2.0 ** min(deaths, 16))


class _Waiting:
    """A body and who waits for it."""

    def __init__(self, body: bytes, kind: Kind, number: int, client: str) -> None:
        self.body = body
        self.kind = kind
        self.client = client
        self.place = (time.monotonic() + len(body) / BYTES_PER_S, number)
        self.answer: asyncio.Future[Taken | Inputs | Told] = (
            asyncio.get_running_loop().create_future()
        )


class Helpers:
    """A fixed number of helper processes and one bounded queue. Needs a running loop."""

    def __init__(
        self,
        setup: Setup,
        *,
        count: int,
        wait_s: float,
        counters: Metrics,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`wait_s`: seconds that a body may wait before a helper takes it."""
        self._setup = setup
        self._count = count
        self.wait_s = wait_s
        self._counters = counters
        self._command = command
        self._queue: list[_Waiting] = []
        self._had = VirtualTokens()
        """What each client's bodies have taken, in seconds of a helper."""
        self._numbers = itertools.count()
        self._arrived = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self.processes: dict[int, HelperProcess] = {}
        """Those that are ready, by number."""

    def open(self) -> None:
        """Start the processes; bodies may come before they are ready."""
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(i)) for i in range(self._count)]

    async def close(self) -> None:
        """Kill the processes; who still waits gets NotReadyError."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_exception(NotReadyError("the server is shutting down"))
        self._queue.clear()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def prepare(self, body: bytes, kind: Kind, client: str = "") -> Taken | Inputs | Told:
        """Raises what Preparation.prepare does, and PromptError, QueueFullError, DeadlineError.

        Args:
            client: whose it is. A named one may fill a part of the queue only.
        """
        if len(self._queue) >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} long prompts wait already", retry_after_s=2.0)
        own = sum(one.client == client for one in self._queue)
        if client and not may_wait(own, len(self._queue), MAX_WAITING):
            raise QueueFullError(
                f"{own} long prompts of this API key wait already", retry_after_s=2.0
            )
        waiting = _Waiting(body, kind, next(self._numbers), client)
        self._enqueue(waiting)
        timer = asyncio.get_running_loop().call_later(self.wait_s, self._waited, waiting)
        try:
            return await waiting.answer
        finally:
            timer.cancel()
            self._leave(waiting)

    def _enqueue(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._had.joins(waiting.client)
        self._arrived.set()

    def _leave(self, waiting: _Waiting) -> bool:
        """Out of the queue. False when a helper has it already."""
        if waiting not in self._queue:
            return False
        self._queue.remove(waiting)
        self._had.leaves(waiting.client)
        return True

    def _waited(self, waiting: _Waiting) -> None:
        if self._leave(waiting):
            _settle(waiting, DeadlineError(f"no prompt helper was free for {self.wait_s:g} s"))

    async def _next(self) -> _Waiting:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        first = min(self._queue, key=lambda one: (self._had.had(one.client), one.place))
        self._leave(first)
        return first

    async def _keep(self, number: int) -> None:
        """One helper's place: a process in it, for ever."""
        deaths = 0
        while True:
            process = HelperProcess(self._command)
            try:
                await process.start(self._setup, start_limit_s(deaths))
                self.processes[number] = process
                while True:
                    waiting = await self._next()
                    await self._work(process, waiting)
                    deaths = 0
            except HelperGoneError as error:
                self._counters.helper_restarts.inc()
                deaths = 0 if process.begun else deaths + 1
                log.get().warning("prompt helper restarts", helper=number, reason=error.message)
            finally:
                self.processes.pop(number, None)
                await process.end()
            if deaths:
                first, longest = BACKOFF_S
                await asyncio.sleep(min(longest, first * 2.0 ** min(deaths - 1, 16)))

    async def _work(self, process: HelperProcess, waiting: _Waiting) -> None:
        """One job. Raises HelperGoneError when the process is of no use any more."""
        began = time.monotonic()
        ended = "failed"
        task = Task(waiting.kind, waiting.body, cpu_limit_s(len(waiting.body)))
        asking = asyncio.ensure_future(process.ask(task))
        try:
            await self._until_done_or_over(asking, waiting)
            answer = asking.result()
            if isinstance(answer, Prepared):
                ended = "prepared"
                _settle(waiting, answer.taken)
            elif isinstance(answer, Refused):
                error = _refusal(answer)
                ended = "refused"
                _settle(waiting, error)
            else:
                raise HelperGoneError("it answered something else")
        except HelperGoneError as error:
            if not process.begun and not waiting.answer.done():
                ended = "returned"  # it died idle, through no fault of this body
                self._enqueue(waiting)
                raise
            what = "this prompt cannot be prepared; the process that tried is no more"
            _settle(waiting, PromptError(f"{what}: {error.message}"))
            raise
        finally:
            if not asking.done():
                asking.cancel()
            if ended == "failed":  # or cancelled, at the end
                _settle(waiting, NotReadyError("the server is shutting down"))
            took = time.monotonic() - began
            if ended != "returned":
                self._had.charge(waiting.client, took)
            self._counters.helper_jobs.labels(ended).inc()
            self._counters.helper_time.observe(took)

    async def _until_done_or_over(self, asking: asyncio.Future[Answer], waiting: _Waiting) -> None:
        """Until the answer, the deadline, or ABANDONED_S when the caller is gone."""
        limit = deadline_s(len(waiting.body))
        began = time.monotonic()
        either: set[asyncio.Future[Any]] = {asking, waiting.answer}
        await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return
        if not waiting.answer.done():
            raise HelperGoneError(f"it was ended after {limit:g} s")
        await asyncio.wait({asking}, timeout=max(0.0, ABANDONED_S + began - time.monotonic()))
        if not asking.done():
            raise HelperGoneError("it worked for a caller who left")


def _refusal(answer: Refused) -> LbhostError:
    """Why a body is not good. Raises HelperGoneError: the helper itself is not."""
    try:
        return answer.as_error()
    except WireError as error:
        raise HelperGoneError(error.message) from error


def _settle(waiting: _Waiting, outcome: Taken | Inputs | Told | Exception) -> None:
    """Tell the caller, if it still waits."""
    if waiting.answer.done():
        return
    if isinstance(outcome, Exception):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
