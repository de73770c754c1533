"""What of the dashboard is shown, and how: commands, pause, themes, the log's own keys, --once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.theme import BUILTIN_THEMES

from fake_admin import FakeAdmin
from lbhost_tui import themes
from lbhost_tui.entry import run
from lbhost_tui.paint import Role
from tui_driver import Driver, dashboard

pytestmark = pytest.mark.anyio


async def command(tui: Driver, text: str) -> None:
    """Type it after a colon, and have it done."""
    await tui.press("colon")
    await tui.until(lambda: isinstance(tui.app.screen, CommandPalette))
    await tui.press(*("space" if c == " " else c for c in text))
    await tui.until(lambda: text in "\n".join(tui.lines[4:]))
    await tui.press("enter")
    await tui.until(lambda: not isinstance(tui.app.screen, CommandPalette))


async def test_a_typed_command_asks_as_the_key_does(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await command(tui, "drain 1")
        await tui.sees("Drain worker 1?")
        await tui.press("y")
        await tui.until(lambda: fake.orders == [("/workers/1/drain", {})])
        await command(tui, "scale 7")
        await tui.until(lambda: fake.orders[1:] == [("/scale", {"workers": 7})])


async def test_commands_show_and_hide(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready", "cpu 0")
        await command(tui, "cores")
        await tui.until(lambda: "cpu 0" not in tui.text)
        await command(tui, "requests")
        await tui.sees("no request waits or runs")


async def test_another_theme_colours_everything(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        before = tui.app._palette.styles[Role.TEXT]
        await command(tui, "theme nord")
        await tui.until(lambda: tui.app.theme == "nord")
        await tui.until(lambda: tui.app._palette.styles[Role.TEXT] != before)
        await tui.sees("● ready")
        await command(tui, "theme ansi-dark")
        await tui.until(lambda: tui.app._palette.styles[Role.BAD].color is not None)


@pytest.mark.parametrize("name", sorted(BUILTIN_THEMES))
async def test_every_theme_has_a_colour_for_every_role(name: str) -> None:
    palette = themes.palette(BUILTIN_THEMES[name])
    assert set(palette.styles) == set(Role)
    assert set(themes.variables(BUILTIN_THEMES[name])) == {"line", "faint", "head"}


async def test_space_holds_the_picture_until_it_is_pressed_again(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.until(lambda: " 97%" in tui.row(0))
        await tui.press("space")
        await tui.sees("paused, space goes on")
        fake.change(0, idle=0.11)
        polls = fake.polls
        await tui.until(lambda: fake.polls > polls + 2)
        assert " 97%" in tui.row(0)
        await tui.press("space")
        await tui.until(lambda: " 11%" in tui.row(0) and "paused" not in tui.text)


async def test_a_server_that_ended_while_the_picture_was_held_is_not_shown_as_there(
    fake: FakeAdmin,
) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("space")
        polls = fake.polls
        await tui.until(lambda: fake.polls > polls + 1 and tui.app._held is not None)
        await fake.stop()
        await tui.until(lambda: tui.app.stale)
        tui.app.unpause()
        assert tui.app.stale


async def test_those_who_only_look_can_order_nothing(folder: Path, fake: FakeAdmin) -> None:
    async with dashboard(fake, readonly=True) as tui:
        await tui.sees("● ready", "l log", "q quit")
        assert "drain" not in tui.lines[-1]
        await tui.press("d", "u", "r", "R", "plus", "minus")
        await tui.press("colon", *"drain")
        await tui.sees("No matches found")
        await tui.press("escape")
        await tui.press("question_mark")
        await tui.sees("keys", "live requests")
        assert "rolling" not in tui.text
        assert "one worker more" not in tui.text
        assert fake.orders == []


async def test_the_log_of_one_worker_is_copied_and_saved(
    fake: FakeAdmin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    await fake.say("all is well", kind="server")
    await fake.say("worker 1 is hung: killing it", worker=1, level="error", kind="health_kill")
    async with dashboard(fake) as tui:
        await tui.sees("all is well", "is hung")
        await tui.press("down", "L")
        await tui.until(lambda: "all is well" not in tui.text)
        await tui.sees("is hung", "worker 1 alone", "y copy", "w save")
        await tui.press("w")
        saved = folder / "lbhost-worker-1.log"
        await tui.sees("log: saved as", saved.name)
        assert saved.read_text().endswith("error health_kill worker 1 is hung: killing it\n")
        await tui.press("w")
        await tui.until(lambda: (folder / "lbhost-worker-1-2.log").exists())
        await tui.press("y")
        await tui.sees("1 line copied")
        assert tui.app.clipboard == saved.read_text()
        await tui.press("escape")
        await tui.sees("all is well")


async def test_a_workers_own_words_stand_between_its_events(
    fake: FakeAdmin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    await fake.say("worker 1: starting -> ready", worker=1)
    await fake.write(1, "llama.cpp: n_ctx = 512", "debug")
    await fake.write(1, "terminate called\x1b[31m\x1b]0;mine\x07 after throwing")
    await fake.write(0, "another one's")
    await fake.say("worker 1 ended: SIGABRT", worker=1, level="error")
    async with dashboard(fake) as tui:
        await tui.sees("ended: SIGABRT")
        assert "n_ctx = 512" not in tui.text
        await tui.press("down", "L")
        await tui.sees("worker 1 alone", "debug     llama.cpp: n_ctx = 512", "output    terminate")
        assert "another one" not in tui.text
        assert "\x1b" not in tui.text
        places = [
            next(y for y, line in enumerate(tui.lines) if word in line)
            for word in ("-> ready", "n_ctx = 512", "terminate called", "SIGABRT")
        ]
        assert places == sorted(places)
        await tui.press("w")
        await tui.sees("log: saved as")
        saved = (folder / "lbhost-worker-1.log").read_text()
        assert "debug worker 1 llama.cpp: n_ctx = 512\n" in saved
        assert "\x1b" not in saved
        assert "\x07" not in saved
        await tui.press("slash", *"terminate", "enter")
        await tui.until(lambda: "n_ctx" not in tui.text and "-> ready" not in tui.text)
        await tui.press("escape", "tab")
        await fake.write(1, "and on it goes")
        await tui.sees("and on it goes")
        await tui.press("up", "L")
        await tui.sees("worker 0 alone", "another one's")
        assert "n_ctx" not in tui.text
        await tui.press("L")
        await tui.until(lambda: "another one's" not in tui.text)


async def test_once_prints_the_screen_as_text(
    fake: FakeAdmin,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    assert await asyncio.to_thread(run, folder, once=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "SmolLM2-135M-Instruct" in lines[0]
    assert any("● ready" in line and "97%" in line for line in lines)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert not any("\x1b" in line for line in lines)


def test_once_without_a_server_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbhost_tui.export.FIRST_TIMEOUT_S", 0.1)
    assert run(folder, once=True) == 1
    assert capsys.readouterr().err.count("\n") == 1
