"""Orders given to the dashboard: what asks first, what goes on meanwhile, what is told."""

from __future__ import annotations

import pytest
from textual.widgets import Button

from fake_admin import FakeAdmin, status
from lbhost.errors import ConflictError
from lbhost_tui.confirm import Confirm
from tui_driver import dashboard

pytestmark = pytest.mark.anyio


async def test_drain_asks_first_and_stands_on_cancel(fake: FakeAdmin) -> None:
    fake.change(0, slots_busy=3, in_flight=3)
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("d")
        await tui.sees("Drain worker 0?", "3 running requests")
        focused = tui.app.screen.focused
        assert isinstance(focused, Button)
        assert focused.id == "cancel"
        await tui.press("enter")
        await tui.until(lambda: not isinstance(tui.app.screen, Confirm))
        assert fake.orders == []


async def test_a_confirmed_drain_is_carried_out_and_reported(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("down", "d")
        await tui.sees("Drain worker 1?")
        await tui.press("right", "enter")
        await tui.until(lambda: "stopped" in tui.row(1))
        assert fake.orders == [("/workers/1/drain", {})]
        await tui.sees("drain worker 1", "done")


async def test_resume_needs_no_question(fake: FakeAdmin) -> None:
    fake.change(0, state="stopped", wanted="down", pid=None)
    async with dashboard(fake) as tui:
        await tui.sees("○ stopped")
        await tui.press("u")
        await tui.until(lambda: "● ready" in tui.row(0))
        assert fake.orders == [("/workers/0/resume", {})]


@pytest.mark.parametrize(
    ("key", "question", "order"),
    [
        ("r", "Restart worker 0?", ("/workers/0/restart", {})),
        ("R", "Restart all 2 workers", ("/workers/restart", {})),
        ("minus", "Scale down from 2 to 1 worker?", ("/scale", {"workers": 1})),
    ],
)
async def test_what_stops_work_happens_after_yes_only(
    fake: FakeAdmin, key: str, question: str, order: tuple[str, dict[str, int]]
) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press(key)
        await tui.sees(question)
        await tui.press("escape")
        await tui.until(lambda: not isinstance(tui.app.screen, Confirm))
        assert fake.orders == []
        await tui.press(key)
        await tui.sees(question)
        await tui.press("y")
        await tui.until(lambda: fake.orders == [order])


async def test_scale_up_goes_straight(fake: FakeAdmin) -> None:
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("plus")
        await tui.until(lambda: "● ready" in tui.row(2))
        assert fake.orders == [("/scale", {"workers": 3})]


async def test_the_last_worker_cannot_be_scaled_away(fake: FakeAdmin) -> None:
    fake.status = status(1)
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("minus")
        await tui.sees("one worker is the least")
        assert fake.orders == []


async def test_an_order_under_way_does_not_hold_up_the_screen(fake: FakeAdmin) -> None:
    fake.gate.clear()
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("d", "y")
        await tui.sees("drain worker 0…")
        fake.change(1, tokens_s=77.0)
        await tui.until(lambda: " 77 " in tui.row(1))
        await tui.press("d", "y")
        await tui.sees("already under way")
        assert len(fake.orders) == 1
        fake.gate.set()
        await tui.until(lambda: "stopped" in tui.row(0) and "worker 0…" not in tui.text)


async def test_a_refusal_is_shown_in_the_servers_words(fake: FakeAdmin) -> None:
    fake.refusal = ConflictError("worker 0 is ready already")
    async with dashboard(fake) as tui:
        await tui.sees("● ready")
        await tui.press("u")
        await tui.sees("resume worker 0", "worker 0 is ready already")


async def test_a_dashboard_that_stops_its_server_asks_before_it_quits(fake: FakeAdmin) -> None:
    async with dashboard(fake, stops_server=True) as tui:
        await tui.sees("● ready")
        await tui.press("question_mark")
        await tui.sees("which stops this server, too")
        await tui.press("escape", "q")
        await tui.sees("Quit and stop the server?")
        focused = tui.app.screen.focused
        assert focused is not None
        assert focused.id == "cancel"
        await tui.press("enter")
        await tui.until(lambda: not isinstance(tui.app.screen, Confirm))
        assert tui.app.is_running
        await tui.press("ctrl+c")
        await tui.sees("Quit and stop the server?")
        await tui.press("y")
        await tui.until(lambda: not tui.app.is_running)


async def test_the_outcome_of_an_order_covers_no_pane(fake: FakeAdmin) -> None:
    fake.refusal = ConflictError("no, " * 40)
    await fake.say("a line of the log")
    async with dashboard(fake, 80, 24) as tui:
        await tui.sees("a line of the log")
        await tui.press("u")
        await tui.sees("resume worker 0: no,")
        assert not tui.app.screen.query("Toast")
        await tui.sees("a line of the log", "● ready", "? help")
