"""Clients that behave badly: that vanish, read nothing, send a byte a second, send garbage.

Loopback only; so many of each kind at a time as `crowd` says. How many came is counted.
crowds.py has thousands of each.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from faults.scene import Scene

_HOLD_S = 20.0
"""How long a client that reads nothing, or hardly sends, keeps its connection at most."""
_LITTLE = 4096
"""Bytes that the kernel keeps for a client that reads nothing."""


class Door(NamedTuple):
    """Where a client knocks."""

    host: str
    port: int
    key: str | None = None
    """Its API key, where the server has keys."""


Client = Callable[[Door, random.Random, float], Awaitable[None]]
"""Raises OSError when it is refused or cut off."""


async def vanish(door: Door, rng: random.Random, _hold_s: float) -> None:
    """Ask, read for a moment, hang up."""
    reader, writer = await asyncio.open_connection(door.host, door.port)
    writer.write(_request(door, {"prompt": "Once", "max_tokens": 64, "stream": True}))
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(200), rng.uniform(0.01, 1.0))
    writer.transport.abort()


async def read_nothing(door: Door, _rng: random.Random, hold_s: float) -> None:
    """Ask for a long answer and leave it in the socket, which holds little of it."""
    ours = socket.socket()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    ours.setblocking(False)
    await asyncio.get_running_loop().sock_connect(ours, (door.host, door.port))
    reader, writer = await asyncio.open_connection(sock=ours, limit=16)
    writer.write(_request(door, {"prompt": "Once", "max_tokens": 128, "stream": True}))
    await asyncio.sleep(hold_s)
    del reader
    writer.transport.abort()


async def creep(door: Door, _rng: random.Random, hold_s: float) -> None:
    """Send a byte a second."""
    reader, writer = await asyncio.open_connection(door.host, door.port)
    for byte in _request(door, {"prompt": "Once"})[: int(hold_s)]:
        if reader.at_eof():
            break  # it was told that it is too slow
        writer.write(bytes([byte]))
        await asyncio.sleep(1.0)
    writer.transport.abort()


async def babble(door: Door, rng: random.Random, _hold_s: float) -> None:
    """Send what is no request, or nearly one."""
    reader, writer = await asyncio.open_connection(door.host, door.port)
    garbage = rng.randbytes(rng.randrange(1, 4000))
    request = bytearray(_request(door, {"prompt": "Once", "max_tokens": 2}))
    if rng.random() < 0.5:
        for _ in range(3):
            request[rng.randrange(len(request))] = rng.randrange(256)
        garbage = bytes(request)
    writer.write(garbage)
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(500), 2.0)
    writer.transport.abort()


def crowd(client: Client, at_once: int = 8) -> Callable[[Scene], Awaitable[None]]:
    """A fault: so many such clients at a time, again and again, until the time is over."""

    async def run(scene: Scene) -> None:
        door = Door(scene.box.admin.host, scene.box.admin.port)

        async def one() -> None:
            while not scene.over:
                scene.others += 1
                await knock(client, door, scene.rng)
                await asyncio.sleep(0.01)

        people = [asyncio.create_task(one()) for _ in range(at_once)]
        await scene.pause(float("inf"))
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)

    return run


async def knock(client: Client, door: Door, rng: random.Random) -> None:
    """One client comes, and goes as it likes or as it is told to."""
    with suppress(OSError):  # refused or cut off: that is the server's right
        await client(door, rng, rng.uniform(2.0, _HOLD_S))


def _request(door: Door, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    key = "" if door.key is None else f"X-Api-Key: {door.key}\r\n"
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{key}Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data
