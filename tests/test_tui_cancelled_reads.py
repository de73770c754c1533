"""What a cancelled read of a unix socket must not bring to the terminal."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from lbhost_tui import cancelled_reads

LATE = asyncio.InvalidStateError


async def reported(*, tolerate: bool) -> list[type[BaseException]]:
    """What the loop reports of a read's late wake-up, of a callback that fails, and afterwards."""
    loop = asyncio.get_running_loop()
    found: list[type[BaseException]] = []
    loop.set_exception_handler(lambda _loop, context: found.append(type(context["exception"])))

    async def wake_late() -> None:
        read = loop.create_future()
        read.cancel()
        loop.call_soon(read.set_result, None)  # so does anyio
        await asyncio.sleep(0)

    with cancelled_reads.tolerated() if tolerate else nullcontext():
        await wake_late()
        loop.call_soon(int, "no number")
        await asyncio.sleep(0)
    await wake_late()
    return found


@pytest.mark.parametrize(
    ("tolerate", "expected"),
    [(False, [LATE, ValueError, LATE]), (True, [ValueError, LATE])],
)
def test_only_the_late_wake_up_is_not_reported(
    tolerate: bool, expected: list[type[BaseException]]
) -> None:
    assert asyncio.run(reported(tolerate=tolerate)) == expected
