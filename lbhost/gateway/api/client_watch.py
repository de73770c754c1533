"""Notices that a client has left, and ends what nobody waits for any more or for too long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.types import Receive

from lbhost.gateway.api.answer import ClientGoneError


class Client:
    """Notices when the client hangs up. `forget` must be called in the end."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._then: Callable[[], None] | None = None
        self._task = asyncio.create_task(self._watch(receive))

    def on_gone(self, then: Callable[[], None]) -> None:
        """What to do when it happens, instead of what was said before; at once if it has."""
        self._then = then
        if self.gone:
            then()

    def forget(self) -> None:
        self._task.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._then is not None:
            self._then()


@contextlib.asynccontextmanager
async def while_wanted(client: Client, seconds: float) -> AsyncIterator[None]:
    """Ends what is done within when the client leaves, or so many seconds are over.

    Raises ClientGoneError, TimeoutError.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            client.on_gone(lambda: _expire(limit))
            yield
        if client.gone:
            raise ClientGoneError
    except TimeoutError as error:
        if client.gone:
            raise ClientGoneError from error
        raise
    finally:
        client.on_gone(_nothing)  # what is over cannot be ended


def _expire(limit: asyncio.Timeout) -> None:
    """End what a time-out guards as if its time were over."""
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


def _nothing() -> None:
    """To be done for a client that has gone: whoever waits looks at `gone` then."""
