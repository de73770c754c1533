"""The TUI's client and feed against a real (fake) admin server on a unix socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from textual.message import Message

from fake_admin import FakeAdmin, status
from lbhost.errors import ConflictError, ServerGoneError
from lbhost_tui import actions
from lbhost_tui.client import AdminClient, RefusedError
from lbhost_tui.feed import Feed
from lbhost_tui.messages import EventsArrived, ServerGone, StatusArrived

pytestmark = pytest.mark.anyio

DEADLINE_S = 60.0
M = TypeVar("M", bound=Message)


@pytest.fixture
def socket_path(folder: Path) -> Path:
    return folder / "admin.sock"


@pytest.fixture
async def client(socket_path: Path) -> AsyncIterator[AdminClient]:
    client = AdminClient(socket_path)
    yield client
    await client.close()


class Screen:
    """Collects what the feed posts."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = asyncio.Event()

    def post(self, message: Message) -> None:
        self.messages.append(message)
        self._news.set()

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def lines(self) -> list[str]:
        return [event.message for some in self.of(EventsArrived) for event in some.events]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def screen(client: AdminClient) -> AsyncIterator[Screen]:
    """A screen that a running feed fills."""
    screen = Screen()
    task = asyncio.create_task(Feed(client, screen.post).run())
    yield screen
    task.cancel()
    await asyncio.wait([task])


async def test_status_comes_back_in_its_shape(fake: FakeAdmin, client: AdminClient) -> None:
    assert await client.status() == fake.status


async def test_no_socket_is_said_in_words(client: AdminClient) -> None:
    with pytest.raises(ServerGoneError, match="there is no socket"):
        await client.status()


async def test_a_dead_socket_is_said_in_words(client: AdminClient, socket_path: Path) -> None:
    async with FakeAdmin(socket_path):
        os.link(socket_path, socket_path.with_suffix(".left"))
    socket_path.with_suffix(".left").rename(socket_path)
    with pytest.raises(ServerGoneError, match="nobody listens"):
        await client.status()


async def test_an_order_is_carried_out(fake: FakeAdmin, client: AdminClient) -> None:
    said = await client.send(actions.drain(fake.status, fake.status.workers[1]))
    assert said == "done"
    assert fake.orders == [("/workers/1/drain", {})]
    assert fake.status.workers[1].state == "stopped"


async def test_a_refusal_keeps_the_servers_words(fake: FakeAdmin, client: AdminClient) -> None:
    fake.refusal = ConflictError("worker 1 is starting: try again when it is ready")
    with pytest.raises(RefusedError, match="worker 1 is starting"):
        await client.send(actions.resume(fake.status.workers[1]))


async def test_an_order_to_nobody_is_said_in_words(client: AdminClient) -> None:
    with pytest.raises(ServerGoneError, match="no answer"):
        await client.send(actions.restart_all(status(2)))


async def test_events_go_on_after_the_last_seen(fake: FakeAdmin, client: AdminClient) -> None:
    for number in range(5):
        await fake.say(f"line {number}")
    events = client.events(after=3)
    got = [await anext(events), await anext(events)]
    await events.aclose()
    assert [event.message for event in got] == ["line 3", "line 4"]


async def test_the_feed_shows_pictures_and_events(fake: FakeAdmin, screen: Screen) -> None:
    await fake.say("first")
    await screen.until(lambda: screen.lines == ["first"] and bool(screen.of(StatusArrived)))
    await fake.say("second")
    await screen.until(lambda: screen.lines == ["first", "second"])


async def test_one_status_request_is_in_flight_at_a_time(fake: FakeAdmin, screen: Screen) -> None:
    fake.change(0, state="draining")
    for number in range(20):
        await fake.say(f"line {number}")
    await screen.until(lambda: len(screen.of(StatusArrived)) >= 4)
    assert fake.most_polls_at_once == 1


async def test_an_event_brings_a_picture_at_once(fake: FakeAdmin, screen: Screen) -> None:
    await screen.until(lambda: bool(screen.of(StatusArrived)) and bool(fake.resumed_from))
    fake.change(1, state="failed")
    await fake.say("worker 1 failed", worker=1)
    await screen.until(
        lambda: screen.of(StatusArrived)[-1].status.workers[1].state == "failed",
    )


async def test_a_lost_server_is_found_again_and_no_event_twice(
    fake: FakeAdmin, screen: Screen
) -> None:
    await fake.say("before")
    await screen.until(lambda: screen.lines == ["before"])
    await fake.stop()
    await screen.until(lambda: bool(screen.of(ServerGone)))
    pictures = len(screen.of(StatusArrived))
    await fake.start()
    await fake.say("after")
    await screen.until(lambda: screen.lines == ["before", "after"])
    assert len(screen.of(StatusArrived)) > pictures
    assert fake.resumed_from[0] is None
    assert fake.resumed_from[-1] == "1"


async def test_another_server_starts_another_count_of_events(
    fake: FakeAdmin, screen: Screen
) -> None:
    await fake.say("one")
    await fake.say("two")
    await screen.until(lambda: screen.lines == ["one", "two"])
    await fake.stop()
    await screen.until(lambda: bool(screen.of(ServerGone)))
    fake.status = msgspec.structs.replace(fake.status, pid=9999, uptime_s=1.0)
    fake.events.clear()
    await fake.start()
    await fake.say("new one")
    await screen.until(lambda: screen.lines == ["one", "two", "new one"])
