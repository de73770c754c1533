"""The dashboard in a real terminal: tmux types the keys, and reads the screen back."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fake_admin import FakeAdmin

pytestmark = pytest.mark.anyio

DEADLINE_S = 60.0
RUN = (
    "import sys; from pathlib import Path; from lbhost_tui.entry import run; "
    "sys.exit(run(Path(sys.argv[1])))"
)


class Terminal:
    """One tmux session of its own server."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def tmux(self, *arguments: str) -> str:
        tmux = shutil.which("tmux")
        if tmux is None:
            pytest.fail("this test needs tmux: install the package of that name")
        process = await asyncio.create_subprocess_exec(
            tmux,
            "-S",
            str(self._socket),
            "-f",
            "/dev/null",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def keys(self, *keys: str) -> None:
        await self.tmux("send-keys", *keys)

    async def screen(self, *, colours: bool = False) -> str:
        return await self.tmux("capture-pane", "-p", *(["-e"] if colours else []))

    async def sees(self, *texts: str, without: str = "\0") -> str:
        """Wait until the screen holds all the texts, and not `without`."""
        screen = ""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    screen = await self.screen()
                    if all(text in screen for text in texts) and without not in screen:
                        return screen
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"the terminal never showed {texts}:\n{screen}")


@asynccontextmanager
async def terminal(folder: Path, term: str, width: int, height: int) -> AsyncIterator[Terminal]:
    """The dashboard in a terminal of this kind and size; afterwards its exit code is shown."""
    terminal = Terminal(folder / "tmux")
    python = f"{shlex.quote(sys.executable)} -c {shlex.quote(RUN)} {shlex.quote(str(folder))}"
    # COLUMNS and LINES, where something has set them, would overrule the terminal's real size.
    unset = "-u COLORTERM -u NO_COLOR -u COLUMNS -u LINES"
    command = f"env {unset} TERM={term} {python}; echo exit code $?; exec cat"
    await terminal.tmux("new-session", "-d", "-x", str(width), "-y", str(height), command)
    try:
        yield terminal
    finally:
        await terminal.tmux("kill-server")


@pytest.mark.parametrize("term", ["xterm", "xterm-256color"])
async def test_the_keys_work_in_a_real_terminal(term: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        folder = Path(name)
        async with (
            FakeAdmin(folder / "admin.sock") as fake,
            terminal(folder, term, 80, 24) as screen,
        ):
            first = await screen.sees("SmolLM2-135M-Instruct", "● ready", "q quit")
            assert all(len(line) <= 80 for line in first.splitlines())
            coloured = await screen.screen(colours=True)
            assert ("38;5;" in coloured) is (term == "xterm-256color")

            await screen.keys("Down", "d")
            await screen.sees("Drain worker 1?", "Cancel")
            await screen.keys("Enter")
            await screen.sees("● ready", without="Drain worker 1?")
            assert fake.orders == []
            await screen.keys("d")
            await screen.sees("Drain worker 1?")
            await screen.keys("Right", "Enter")
            await screen.sees("○ stopped", without="Drain worker 1?")
            await screen.keys("u")
            await screen.sees("● ready", without="○ stopped")
            await screen.keys("R")
            await screen.sees("Restart all 2 workers")
            await screen.keys("y")
            await screen.sees("q quit", without="Restart all 2 workers")
            await screen.keys("+")
            await screen.sees(" 2 ● ready")
            assert [path for path, _ in fake.orders] == [
                "/workers/1/drain",
                "/workers/1/resume",
                "/workers/restart",
                "/scale",
            ]

            await screen.keys("Enter")
            await screen.sees("inter-token")
            await screen.keys("l")
            await screen.sees("operator: /scale", without="inter-token")
            await fake.stop()
            await screen.sees("server gone, last seen", "reconnecting…")
            await fake.start()
            await screen.sees("● ready", without="server gone")
            await screen.keys("q")
            await screen.sees("exit code 0")


async def test_a_wide_terminal_shows_details_and_log_side_by_side() -> None:
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        folder = Path(name)
        async with (
            FakeAdmin(folder / "admin.sock") as fake,
            terminal(folder, "xterm-256color", 140, 40) as screen,
        ):
            await fake.say("a line of the log")
            await screen.sees("a line of the log", "rst", "R rolling restart")
            await screen.keys("Enter")
            await screen.sees("a line of the log", "inter-token", "psi c/m/i")
            await screen.keys("q")
            await screen.sees("exit code 0")
