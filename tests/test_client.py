"""The CLI's client of the admin API, over stand-ins of a server that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from fake_admin import FakeAdmin, status
from lbhost.client import AdminClient
from lbhost.status import Event

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0


@asynccontextmanager
async def server(folder: Path, pid: int) -> AsyncIterator[FakeAdmin]:
    """One that is found at admin.sock from now on, whoever was before."""
    picture = msgspec.structs.replace(status(1), pid=pid)
    async with FakeAdmin(folder / f"{pid}.sock", picture) as fake:
        (folder / f"{pid}.sock").rename(folder / "admin.sock")
        yield fake


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_who_follows_events_follows_the_server_that_takes_over(folder: Path) -> None:
    found: list[Event] = []

    def follow() -> None:
        with AdminClient(folder) as client:
            following = client.and_after(1, partial(client.events, follow=True))
            found.extend(islice(following, 4))
            following.close()

    async with server(folder, 1) as first:
        await first.say("of long ago")
        await first.say("it begins")
        following = asyncio.create_task(asyncio.to_thread(follow))
        await until(lambda: found)
        async with server(folder, 2) as second:
            for word in ("one", "two"):
                await second.say(word)
            await first.stop()
            await until(lambda: len(found) == 3)
            await second.say("three")
            async with asyncio.timeout(PATIENCE_S):
                await following
    assert [event.message for event in found] == ["it begins", "one", "two", "three"]


async def test_a_look_goes_to_the_server_that_is_there_now(folder: Path) -> None:
    def pid(client: AdminClient) -> int:
        return client.status().pid

    async with server(folder, 1) as first:
        client = await asyncio.to_thread(AdminClient, folder)
        with client:
            assert await asyncio.to_thread(pid, client) == 1
            async with server(folder, 2):
                await first.stop()
                assert await asyncio.to_thread(pid, client) == 2
