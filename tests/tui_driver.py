"""A dashboard without a terminal, by Textual's pilot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot

from fake_admin import FakeAdmin
from lbhost_tui.app import Dashboard
from lbhost_tui.paint import Parts

DEADLINE_S = 60.0
_ROW = re.compile(r"[▸ ]\s*(\d+)\s+[●◌◐◑◔○◍✕] ")


def plain(parts: Parts) -> str:
    """Their text without colours."""
    return "".join(text for text, _ in parts)


class Driver:
    """A dashboard without a terminal: press keys, read the screen, wait for something."""

    def __init__(self, app: Dashboard, pilot: Pilot[int]) -> None:
        self.app = app
        self._pilot = pilot

    @property
    def lines(self) -> list[str]:
        """The screen as text, top to bottom."""
        width, height = self.app.size
        strips = self.app.screen._compositor.render_strips()
        return ["".join(s.text for s in strips[y]).ljust(width) for y in range(height)]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def row(self, number: int) -> str:
        """The table's line of a worker, or "" when it is not in sight."""
        lines = [(_ROW.match(line), line) for line in self.lines]
        return next((x for found, x in lines if found and int(found[1]) == number), "")

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    async def click(self, selector: str, x: int, y: int) -> None:
        await self._pilot.click(selector, offset=(x, y))

    async def click_at(self, x: int, y: int) -> None:
        """A cell of the screen."""
        await self._pilot.click(offset=(x, y))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so, or fail with the screen."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    await self._pilot.pause(0.02)
        except TimeoutError:
            pytest.fail("the screen never got there:\n" + self.text)

    async def sees(self, *texts: str) -> None:
        await self.until(lambda: all(text in self.text for text in texts))


@asynccontextmanager
async def dashboard(
    fake: FakeAdmin,
    width: int = 120,
    height: int = 32,
    *,
    plain: bool = False,
    stops_server: bool = False,
    readonly: bool = False,
) -> AsyncIterator[Driver]:
    app = Dashboard(fake.socket_path, plain=plain, stops_server=stops_server, readonly=readonly)
    async with app.run_test(size=(width, height), notifications=True) as pilot:
        yield Driver(app, pilot)
