"""The dashboard by Textual's pilot, against a real (fake) admin server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from fake_admin import FakeAdmin, status, worker
from lbhost.status import StatesStatus
from lbhost_tui import export
from lbhost_tui.app import Dashboard
from lbhost_tui.entry import run
from lbhost_tui.eventlog import EventLog
from lbhost_tui.help import Help
from lbhost_tui.help import lines as help_lines
from tui_driver import dashboard

pytestmark = pytest.mark.anyio


async def test_the_first_picture_fills_header_and_table(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("SmolLM2-135M-Instruct", "http://127.0.0.1:8080", "up 2m 15s", "0 of 256")
        await tui.until(lambda: "● ready" in tui.row(0) and "97%" in tui.row(1))
        assert tui.row(0).startswith("▸")


async def test_no_server_yet_says_so_and_waits(folder: Path) -> None:
    server = FakeAdmin(folder / "admin.sock")
    async with dashboard(server) as tui:
        await tui.sees("no server yet", "waiting for a server on", "lbhost serve")
        await server.start()
        await tui.sees("SmolLM2-135M-Instruct", "● ready")
        await server.stop()


async def test_a_starting_server_without_workers_says_what_it_does(fake: FakeAdmin) -> None:
    fake.status = msgspec.structs.replace(status(0), state="starting")
    async with dashboard(fake) as tui:
        await tui.sees("◌ starting", "starting: SmolLM2-135M-Instruct is being loaded")
        fake.status = status(2)
        await tui.until(lambda: "● ready" in tui.row(1))


async def test_details_tell_what_the_store_holds(fake: FakeAdmin) -> None:
    states = StatesStatus(
        entries=9, bytes=300 << 20, limit=2 << 30, hits=30, misses=10, tokens=12345
    )
    fake.status = msgspec.structs.replace(fake.status, states=states)
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("enter")
        await tui.sees("kv store", "300M/2.0G", "75%", "12k")


async def test_details_open_follow_the_selection_and_close(fake: FakeAdmin) -> None:
    fake.change(1, last_exit="killed by SIGSEGV")
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("enter")
        await tui.sees("pid 4200", "inter-token", "psi c/m/i")
        await tui.press("down")
        await tui.sees("pid 4201", "killed by SIGSEGV")
        await tui.press("enter")
        await tui.until(lambda: "pid 4201" not in tui.text)
        await tui.press("enter", "escape")
        await tui.until(lambda: "pid 4201" not in tui.text)


async def test_the_log_shows_events_and_can_be_hidden(fake: FakeAdmin) -> None:
    await fake.say("ready after 31 ms", worker=1)
    async with dashboard(fake) as tui:
        await tui.sees("worker 1", "ready after 31 ms")
        await fake.say("killed: no step for 4.1 s", worker=0, level="error")
        await tui.sees("✕ worker 0", "killed: no step for 4.1 s")
        await tui.press("l")
        await tui.until(lambda: "ready after 31 ms" not in tui.text)
        await tui.press("l")
        await tui.sees("ready after 31 ms")


async def test_the_log_follows_the_newest_event_until_scrolled_up(fake: FakeAdmin) -> None:
    async with dashboard(fake, 100, 30) as tui:
        for number in range(50):
            await fake.say(f"line {number}.")
            if number % 10 == 9:
                await tui.sees(f"line {number}.")
        await tui.press("tab", "home")
        await tui.sees("line 0.")
        await fake.say("line 50.")
        await fake.say("one more", worker=1)
        await tui.until(lambda: "line 50." in tui.app.query_one(EventLog).text)
        assert "line 0." in tui.text
        await tui.press("end")
        await tui.sees("line 50.", "one more")
        await fake.say("worker 1: ready -> draining", worker=1)
        await tui.sees("worker 1  ready -> draining")


async def test_in_a_narrow_terminal_the_log_takes_the_details_place(fake: FakeAdmin) -> None:
    await fake.say("a line of the log")
    async with dashboard(fake, 80, 24) as tui:
        await tui.sees("a line of the log")
        await tui.press("enter")
        await tui.until(lambda: "pid 4200" in tui.text and "a line of the log" not in tui.text)
        await tui.press("l")
        await tui.until(lambda: "pid 4200" not in tui.text and "a line of the log" in tui.text)


async def test_the_filter_narrows_workers_and_events(fake: FakeAdmin) -> None:
    fake.status = status(12)
    fake.change(7, state="failed", last_exit="SIGKILL")
    await fake.say("ready", worker=3)
    await fake.say("gave up", worker=7)
    async with dashboard(fake) as tui:
        await tui.sees("gave up")
        await tui.press("slash", *"failed")
        await tui.until(lambda: not tui.row(3) and "failed" in tui.row(7))
        await tui.press("enter")
        await tui.sees("filter workers failed", "1 of 12 workers")
        assert "worker 3  ready" in tui.text, "the log has a filter of its own"
        await tui.press("slash", "ctrl+u", *"7", "enter")
        await tui.until(lambda: bool(tui.row(7)) and not tui.row(3))
        await tui.press("d")
        await tui.sees("Drain worker 7?")
        await tui.press("escape", "escape")
        await tui.until(lambda: "ready" in tui.row(3) and "filter workers" not in tui.text)


async def test_a_filter_that_matches_nothing_says_so(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("slash", *"nonsense")
        await tui.sees("no worker matches “nonsense”")
        await tui.press("enter", "d", "enter")
        assert fake.orders == []


async def test_each_pane_has_a_filter_of_its_own_and_esc_clears_it(fake: FakeAdmin) -> None:
    fake.change(1, state="stopped")
    await fake.say("one of the log")
    await fake.say("another of the log")
    async with dashboard(fake) as tui:
        await tui.sees("one of", "another of")
        await tui.press("slash", *"stopped", "enter")
        await tui.until(lambda: not tui.row(0) and bool(tui.row(1)))
        await tui.press("tab", "slash", *"another", "enter")
        await tui.until(lambda: "one of" not in tui.text and "another of" in tui.text)
        await tui.sees("filter workers stopped", "filter log another")
        assert not tui.row(0)
        await tui.press("escape")
        await tui.until(lambda: "one of" in tui.text and "filter log" not in tui.text)
        assert not tui.row(0)
        await tui.press("shift+tab", "escape")
        await tui.until(lambda: bool(tui.row(0)) and "filter" not in tui.lines[3])


async def test_prefill_is_seen_to_work(fake: FakeAdmin) -> None:
    fake.change(0, slots_busy=1, in_flight=1, prefill_pending=5000, prompt_tokens_s=640.0)
    traffic = msgspec.structs.replace(fake.status.traffic, in_flight=1, prompt_tokens_s=640.0)
    fake.status = msgspec.structs.replace(fake.status, traffic=traffic)
    async with dashboard(fake, 80, 24) as tui:
        await tui.until(lambda: " 5.0k " in tui.row(0) and " 640 " in tui.row(0))
        assert " 640 " in tui.lines[2]
        fake.change(0, prefill_pending=2400)
        await tui.until(lambda: " 2.4k " in tui.row(0))


async def test_a_server_of_another_version_is_named(folder: Path) -> None:
    answer = '{"version": "9.9.9", "workers": "many"}'

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\nconnection: close\r\n"
            writer.write(f"{head}\r\n{answer}".encode())
            await writer.drain()
        writer.close()

    nobody = FakeAdmin(folder / "admin.sock")
    async with await asyncio.start_unix_server(other, nobody.socket_path), dashboard(nobody) as tui:
        await tui.sees("the server is lbhost 9.9.9", "another lbhost runs there")


async def test_keys_typed_into_the_filter_are_text(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("slash", *"drRuq+-l?")
        await tui.sees("drRuq+-l?")
        assert fake.orders == []
        assert tui.app.is_running


async def test_the_server_goes_and_comes_back(fake: FakeAdmin) -> None:
    fake.change(0, tokens_s=88.0)
    async with dashboard(fake) as tui:
        await tui.until(lambda: " 88 " in tui.row(0))
        await fake.stop()
        await tui.sees("server gone, last seen", "reconnecting…")
        assert tui.app.stale
        assert re.search(r"✕ lost since \d\d:\d\d:\d\d   http", tui.lines[0])
        assert "ready" not in tui.lines[0]
        assert " 88 " in tui.row(0)
        await tui.press("u")
        await tui.sees("the server is gone")
        fake.change(0, tokens_s=99.0)
        await fake.start()
        await tui.until(lambda: " 99 " in tui.row(0) and "server gone" not in tui.text)
        assert not tui.app.stale
        assert "● ready" in tui.lines[0]


async def test_unknown_readings_are_dashes(fake: FakeAdmin) -> None:
    bare = worker(0, idle=None, others=None, temp_c=None, memory=None, share=None)
    fake.status = msgspec.structs.replace(status(1), workers=[bare], cores=[])
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        assert tui.row(0).count("–") == 5  # noqa: RUF001 - idle, others, temp, ttft, memory
        await tui.press("enter")
        await tui.sees("stolen", "–")  # noqa: RUF001


@pytest.mark.parametrize("plain", [False, True])
async def test_80x24_holds_everything_without_scrolling_sideways(
    fake: FakeAdmin, plain: bool
) -> None:
    fake.change(0, tokens_s=118.2, ttft_s=0.18, others=0.54, temp_c=83.0, prefill_pending=1200)
    async with dashboard(fake, 80, 24, plain=plain) as tui:
        await tui.until(lambda: " 118 " in tui.row(0))
        for text in ("54%", "83°", "1.2k", "180ms", "0/4"):
            assert text in tui.row(0)
        for name in ("idle", "others", "temp", "slots", "pend", "in/s", "out/s", "ttft", "kv"):
            assert name in tui.lines[5]
        for key in ("drain", "resume", "restart", "scale", "requests", "filter", "help", "quit"):
            assert key in tui.lines[23]
        assert not any(widget.show_horizontal_scrollbar for widget in tui.app.screen.query("*"))
        await tui.press("question_mark")
        await tui.until(lambda: isinstance(tui.app.screen, Help))
        await tui.sees("keys", "states", "backoff")
        for line in help_lines(stops_server=False):
            assert "".join(text for text, _ in line).strip() in tui.text, line


async def test_64_workers_scroll_and_the_selection_stays_in_sight(fake: FakeAdmin) -> None:
    fake.status = status(64)
    async with dashboard(fake, 80, 24) as tui:
        await tui.until(lambda: bool(tui.row(0)))
        await tui.press("end")
        await tui.until(lambda: bool(tui.row(63)) and not tui.row(0))
        await tui.press("pageup", "up")
        fake.change(63, tokens_s=55.0)
        await tui.press("d")
        await tui.sees("Drain worker 4")
        await tui.press("escape", "home")
        await tui.until(lambda: bool(tui.row(0)) and not tui.row(63))
        await tui.press("end")
        await tui.until(lambda: " 55 " in tui.row(63))


async def test_the_selection_follows_the_worker_when_others_go(fake: FakeAdmin) -> None:
    fake.status = status(4)
    async with dashboard(fake) as tui:
        await tui.until(lambda: bool(tui.row(3)))
        await tui.press("end")
        fake.status = status(2)
        await tui.until(lambda: not tui.row(3))
        await tui.press("r")
        await tui.sees("Restart worker 1?")


async def test_gpu_workers_show_their_card(fake: FakeAdmin) -> None:
    from lbhost.status import GpuStatus

    card = GpuStatus(index=0, name="NVIDIA H100", uuid="GPU-1", utilisation=0.25, temp_c=61.0)
    on_card = worker(0, gpu=0, cores=[], idle=None, others=None, temp_c=None)
    fake.status = msgspec.structs.replace(status(1), workers=[on_card], gpus=[card])
    async with dashboard(fake) as tui:
        await tui.sees("gpu0")
        assert "75%" in tui.row(0)
        assert "61°" in tui.row(0)
        await tui.press("enter")
        await tui.sees("NVIDIA H100")


async def test_a_click_selects_and_a_click_on_a_key_works(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.click("#column-state", 3, 1)
        await tui.click("#keys", 3, 0)
        await tui.sees("Drain worker 1?")


async def test_help_opens_and_closes(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.press("question_mark")
        await tui.sees("drain: finish its requests", "states")
        await tui.press("escape")
        await tui.until(lambda: not isinstance(tui.app.screen, Help))


async def test_a_still_server_draws_nothing(
    fake: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbhost_tui.history.SLOT_S", 1e9)  # else the sparklines grow
    async with dashboard(fake, 120, 50) as tui:
        await tui.sees("● ready", "no request waits or runs")
        drawn: list[object] = []
        polls = fake.polls
        monkeypatch.setattr(tui.app, "_display", lambda screen, what: drawn.append(what))

        def three_pictures_and_nothing_drawn() -> bool:
            nonlocal polls
            if drawn:  # what was still under way
                drawn.clear()
                polls = fake.polls
            return fake.polls >= polls + 3

        await tui.until(three_pictures_and_nothing_drawn)


async def test_export_writes_a_picture_that_needs_nothing_else(
    fake: FakeAdmin, folder: Path
) -> None:
    path = folder / "screen.svg"
    problem = await export.picture(Dashboard(fake.socket_path), path, settle_s=0.0)
    assert problem is None
    svg = path.read_text()
    assert svg.startswith("<svg")
    assert "SmolLM2-135M-Instruct" in svg
    assert "url(http" not in svg
    assert "@font-face" not in svg


async def test_export_without_a_server_says_so(folder: Path) -> None:
    app = Dashboard(folder / "admin.sock")
    problem = await export.picture(app, folder / "screen.svg", settle_s=0.0, first_s=0.2)
    assert problem is not None
    assert "no server answers" in problem
    assert not (folder / "screen.svg").exists()


def test_without_a_terminal_one_line_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder) == 1
    assert capsys.readouterr().err.count("\n") == 1


async def test_a_picture_that_takes_time_says_so(
    fake: FakeAdmin, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "screen.svg"
    assert await asyncio.to_thread(run, folder, export_svg=path, settle_s=0.05) == 0
    assert path.exists()
    said = capsys.readouterr().err.splitlines()
    assert said == ["watching the server for 0.05 s", f"wrote {path}"]
