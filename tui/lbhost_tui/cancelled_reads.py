"""A read that is cancelled in the moment in which there is something to read is no error.

anyio (4.16) has the event loop set the result of a waiting read of a unix socket, without looking
whether that was cancelled in the same turn. The loop then reports an InvalidStateError, for which
nobody waits: a traceback on the terminal when the dashboard ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def tolerated() -> Iterator[None]:
    """Within it, the running loop does not report these; everything else as before."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        late = isinstance(context.get("exception"), asyncio.InvalidStateError)
        if late and "set_result" in context["message"]:
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
