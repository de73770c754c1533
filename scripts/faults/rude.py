"""Clients that behave badly: that vanish, read nothing, send a byte a second, send garbage.

Loopback only; so many of each kind at a time as `crowd` says. How many came is counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from faults.scene import Scene

_HOLD_S = 20.0
"""How long a client that reads nothing, or hardly sends, keeps its connection at most."""
_LITTLE = 4096
"""Bytes that the kernel keeps for a client that reads nothing."""

Client = Callable[[str, int, random.Random, float], Awaitable[None]]


async def vanish(host: str, port: int, rng: random.Random, _hold_s: float) -> None:
    """Ask, read for a moment, hang up."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_request({"prompt": "Once", "max_tokens": 64, "stream": True}))
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(200), rng.uniform(0.01, 1.0))
    writer.transport.abort()


async def read_nothing(host: str, port: int, _rng: random.Random, hold_s: float) -> None:
    """Ask for a long answer and leave it in the socket, which holds little of it."""
    ours = socket.socket()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    ours.setblocking(False)
    await asyncio.get_running_loop().sock_connect(ours, (host, port))
    reader, writer = await asyncio.open_connection(sock=ours, limit=16)
    writer.write(_request({"prompt": "Once", "max_tokens": 128, "stream": True}))
    await asyncio.sleep(hold_s)
    del reader
    writer.transport.abort()


async def creep(host: str, port: int, _rng: random.Random, hold_s: float) -> None:
    """Send a byte a second."""
    reader, writer = await asyncio.open_connection(host, port)
    for byte in _request({"prompt": "Once"})[: int(hold_s)]:
        if reader.at_eof():
            break  # it was told that it is too slow
        writer.write(bytes([byte]))
        await asyncio.sleep(1.0)
    writer.transport.abort()


async def babble(host: str, port: int, rng: random.Random, _hold_s: float) -> None:
    """Send what is no request, or nearly one."""
    reader, writer = await asyncio.open_connection(host, port)
    garbage = rng.randbytes(rng.randrange(1, 4000))
    request = bytearray(_request({"prompt": "Once", "max_tokens": 2}))
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
        host, port = scene.box.admin.host, scene.box.admin.port

        async def one() -> None:
            while not scene.over:
                with suppress(OSError):  # refused or cut off: that is the server's right
                    scene.others += 1
                    await client(host, port, scene.rng, scene.rng.uniform(2.0, _HOLD_S))
                await asyncio.sleep(0.01)

        people = [asyncio.create_task(one()) for _ in range(at_once)]
        await scene.pause(float("inf"))
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)

    return run


def _request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data
