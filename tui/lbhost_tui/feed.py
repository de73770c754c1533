"""Keeps the screen fed: polls /status, follows /events, reconnects with backoff.

Owns the only two loops that talk to the server unasked. One status request is in flight at a
time, at most `MAX_HZ` of them a second; when nothing runs on the server the pace halves, and
an event or an action brings it back. Draws nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from textual.message import Message

from lbhost.errors import OtherVersionError, ServerGoneError
from lbhost.status import Event, Status
from lbhost_tui import cancelled_reads
from lbhost_tui.client import AdminClient, RefusedError
from lbhost_tui.log_feed import LogFeed
from lbhost_tui.messages import EventsArrived, RequestsArrived, ServerGone, StatusArrived

BUSY_S = 0.5
QUIET_S = 1.0
MAX_HZ = 4.0
CPU_SHARE = 0.018
SLOWEST_S = 4.0
BACKOFF_S = (0.5, 1.0, 2.0, 3.0, 5.0)
GATHER_S = 0.05
"""Events that come within this time reach the screen together."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row (1 and up)."""
    return BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]


def pace(status: Status, cost_s: float) -> float:
    """Seconds until the next picture is worth having.

    `cost_s` is the CPU time that a picture takes: a big box on a big screen is drawn less
    often, so that the dashboard keeps to `CPU_SHARE` of a core.
    """
    settled = all(worker.state in ("ready", "stopped", "failed") for worker in status.workers)
    traffic = status.traffic
    quiet = settled and traffic.in_flight == 0 and traffic.queue_depth == 0
    wait_s = QUIET_S if quiet and status.workers else BUSY_S
    return min(SLOWEST_S, max(wait_s, cost_s / CPU_SHARE))


class Feed:
    """The two loops. `post` takes messages, from the same event loop."""

    def __init__(self, client: AdminClient, post: Callable[[Message], object]) -> None:
        self._client = client
        self._post = post
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._server_pid: int | None = None
        self._uptime_s = 0.0
        self._last_seq: int | None = None
        self.log = LogFeed(client, post)
        """What the worker writes whose log is shown."""
        self.requests_wanted = False
        """Whether the live requests are asked for, too."""

    def wake(self) -> None:
        """Ask for a picture soon: something has happened."""
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        with cancelled_reads.tolerated():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll())
                tasks.create_task(self._follow())
                tasks.create_task(self.log.run())

    async def _poll(self) -> None:
        failures = 0
        cost_s, now_s = 0.0, time.process_time()
        while True:
            started = time.monotonic()
            try:
                status = await self._client.status()
            except (ServerGoneError, OtherVersionError) as error:
                failures += 1
                self._up.clear()
                unreadable = isinstance(error, OtherVersionError)
                self._post(ServerGone(error.message, unreadable=unreadable))
                await asyncio.sleep(backoff(failures))
                continue
            failures = 0
            self._meet(status)
            self._up.set()
            self._post(StatusArrived(status, time.monotonic()))
            if self.requests_wanted:
                await self._ask_requests()
            cpu_s, now_s = now_s, time.process_time()
            # Capped, so that the first big drawing does not slow down what follows.
            cost_s += (min(now_s - cpu_s, CPU_SHARE * SLOWEST_S) - cost_s) / 4
            await self._pause(started, pace(status, cost_s))

    async def _ask_requests(self) -> None:
        try:
            self._post(RequestsArrived(await self._client.requests()))
        except (RefusedError, ServerGoneError, OtherVersionError) as error:
            self._post(RequestsArrived(None, error.message))

    def _meet(self, status: Status) -> None:
        """Notice a new server: its events count from 1 again.

        In a container it may well have the old one's pid, but not its uptime.
        """
        if status.pid != self._server_pid or status.uptime_s < self._uptime_s:
            self._server_pid, self._last_seq = status.pid, None
        self._uptime_s = status.uptime_s

    async def _pause(self, started: float, wait_s: float) -> None:
        """Wait `wait_s` from `started`, or less when woken, but keep to MAX_HZ."""
        try:
            async with asyncio.timeout(max(0.0, started + wait_s - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()
        await asyncio.sleep(max(0.0, started + 1 / MAX_HZ - time.monotonic()))

    async def _follow(self) -> None:
        failures = 0
        gathered: list[Event] = []
        loop = asyncio.get_running_loop()

        def flush() -> None:
            self._post(EventsArrived(tuple(gathered)))
            gathered.clear()
            self.wake()

        while True:
            await self._up.wait()
            try:
                async with aclosing(self._client.events(self._last_seq)) as events:
                    async for event in events:
                        failures = 0
                        if self._last_seq is not None and event.seq <= self._last_seq:
                            continue
                        self._last_seq = event.seq
                        if not gathered:
                            loop.call_later(GATHER_S, flush)
                        gathered.append(event)
            except (ServerGoneError, OtherVersionError):
                failures += 1
                self._up.clear()  # first let a picture say whether this is still the same server
                self.wake()
                await asyncio.sleep(backoff(failures))
