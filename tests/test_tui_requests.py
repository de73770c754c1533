"""The dashboard's table of live requests: its lines, and what is done with them."""

from __future__ import annotations

import pytest
from textual.widgets import Button

from fake_admin import FakeAdmin, live_request
from lbhost.errors import GatewaySilentError
from lbhost_tui import request_columns
from lbhost_tui.confirm import Confirm
from lbhost_tui.filter import Filter
from lbhost_tui.paint import Parts, width_of
from lbhost_tui.request_columns import Sorting
from tui_driver import dashboard

REQUESTS = [
    live_request("req_old", key="app", age_s=9.0, tokens_s=20.0, ends_in_s=1.0),
    live_request(
        "req_prefill", state="prefill", prompt_tokens=400, prompt_done=100, age_s=3.0, workers=[1]
    ),
    live_request(
        "req_waits",
        key="batch",
        tier="flex",
        state="queued",
        workers=[],
        prompt_done=0,
        tokens_out=0,
        tokens_s=None,
        age_s=2.0,
        starts_in_s=4.2,
        ends_in_s=9.0,
        answers=3,
    ),
]


def plain(parts: Parts) -> str:
    return "".join(text for text, _ in parts)


@pytest.mark.parametrize("width", [40, 79, 119, 199])
def test_every_line_fits_and_says_what_matters_most(width: int) -> None:
    placed = request_columns.place(width)
    for request in REQUESTS:
        line = request_columns.line(request, placed)
        assert width_of(line) <= width
        assert request.id[:9] in plain(line)
        assert request.state in plain(line)
    assert width_of(request_columns.titles(placed, Sorting())) <= width


def test_a_line_tells_progress_and_what_is_predicted() -> None:
    placed = request_columns.place(120)
    old, prefill, waits = (plain(request_columns.line(r, placed)) for r in REQUESTS)
    assert "ends 1.0s" in old
    assert "100/400" in prefill
    assert "starts 4.2s" in waits
    assert "req_waits x3" in waits


def test_the_orders_of_the_table() -> None:
    def ids(sorting: Sorting) -> list[str]:
        return [request.id.removeprefix("req_") for request in sorting.sorted(REQUESTS)]

    by_age = Sorting()
    assert ids(by_age) == ["old", "prefill", "waits"]
    assert ids(by_age.turned()) == ["waits", "prefill", "old"]
    assert ids(Sorting("predicted")) == ["old", "prefill", "waits"]
    assert ids(Sorting("prompt")) == ["prefill", "old", "waits"]
    assert ids(Sorting("key")) == ["prefill", "old", "waits"]
    seen = {by_age.by}
    sorting = by_age.next()
    while sorting.by != by_age.by:
        seen.add(sorting.by)
        assert len(ids(sorting)) == 3
        sorting = sorting.next()
    assert seen <= {column.key for column in request_columns.COLUMNS}


@pytest.mark.parametrize(
    ("text", "left"),
    [("flex", ["req_waits"]), ("1", ["req_prefill"]), ("app decode", ["req_old"]), ("nobody", [])],
)
def test_the_filter_looks_at_what_the_line_says(text: str, left: list[str]) -> None:
    assert [r.id for r in REQUESTS if Filter(text).request(r)] == left


@pytest.fixture
def fake(fake: FakeAdmin) -> FakeAdmin:
    fake.requests = list(REQUESTS)
    return fake


@pytest.mark.anyio
async def test_t_shows_the_requests_which_are_asked_for_only_then(fake: FakeAdmin) -> None:
    async with dashboard(fake, 80, 24) as tui:
        await tui.sees("● ready")
        polls = fake.polls
        await tui.until(lambda: fake.polls > polls + 1)
        assert fake.asked_requests == 0
        await tui.press("t")
        await tui.sees("3 requests · 1 queued · 1 prefill · 1 decode", "req_old", "starts 4.2s")
        await tui.sees("x cancel")
        await tui.press("t")
        await tui.until(lambda: "req_old" not in tui.text)
        await tui.sees("d drain")


@pytest.mark.anyio
async def test_a_roomy_screen_shows_them_at_once(fake: FakeAdmin) -> None:
    async with dashboard(fake, 200, 60) as tui:
        await tui.sees("req_old", "req_waits x3", "● ready", "cpu 0")


@pytest.mark.anyio
async def test_cancel_asks_first_and_stands_on_letting_it_run(fake: FakeAdmin) -> None:
    async with dashboard(fake, 100, 30) as tui:
        await tui.sees("● ready")
        await tui.press("t")
        await tui.sees("req_prefill")
        await tui.press("down", "x")
        await tui.sees(
            "Cancel request req_prefill?", "It has 40 of at most 256 tokens", "Let it run"
        )
        focused = tui.app.screen.focused
        assert isinstance(focused, Button)
        assert focused.id == "cancel"
        await tui.press("enter")
        await tui.until(lambda: not isinstance(tui.app.screen, Confirm))
        assert fake.orders == []
        await tui.press("x", "right", "enter")
        await tui.sees("cancel request req_prefill: request req_prefill is ended")
        assert fake.orders == [("/requests/req_prefill", None)]
        await tui.until(lambda: "2 requests" in tui.text)


@pytest.mark.anyio
async def test_s_sorts_and_the_selection_stays_with_its_request(fake: FakeAdmin) -> None:
    async with dashboard(fake, 100, 30) as tui:
        await tui.sees("● ready")
        await tui.press("t")
        await tui.sees("age↓", "req_waits")
        await tui.press("end")
        await tui.until(lambda: any("▸req_waits" in line for line in tui.lines))
        await tui.press("S")
        await tui.sees("age↑")
        first = next(line for line in tui.lines if "req_" in line)
        assert "▸req_waits" in first
        await tui.press("s")
        await tui.sees("predicted↓")
        for mark in ("out↓", "out↑"):
            y = next(y for y, line in enumerate(tui.lines) if "predicted" in line)
            await tui.click_at(tui.lines[y].index(" out") + 2, y)
            await tui.sees(mark)
        await tui.press("colon", *"sort", "space", *"state")
        await tui.sees("sort state")
        await tui.press("enter")
        await tui.sees("state↓")


@pytest.mark.anyio
async def test_slash_filters_them_and_esc_clears_then_closes(fake: FakeAdmin) -> None:
    async with dashboard(fake, 100, 30) as tui:
        await tui.sees("● ready")
        await tui.press("t")
        await tui.sees("req_old")
        await tui.press("slash", *"flex", "enter")
        await tui.until(lambda: "req_waits" in tui.text and "req_old" not in tui.text)
        await tui.sees("1 shown", "filter requests flex")
        await tui.press("escape")
        await tui.sees("req_old")
        await tui.press("escape")
        await tui.until(lambda: "req_old" not in tui.text)


@pytest.mark.anyio
async def test_a_gateway_that_does_not_answer_is_said_where_they_would_stand(
    fake: FakeAdmin,
) -> None:
    fake.requests = []
    async with dashboard(fake, 100, 30) as tui:
        await tui.sees("● ready")
        await tui.press("t")
        await tui.sees("no request waits or runs")
        fake.refusal = GatewaySilentError("the gateway did not answer within 2 s")
        await tui.sees("the gateway did not answer within 2 s")
        fake.refusal = None
        await tui.sees("no request waits or runs")


@pytest.mark.anyio
async def test_the_selection_passes_requests_of_one_id(fake: FakeAdmin) -> None:
    ids = ("req_one", "req_same", "req_same", "req_last")
    fake.requests = [live_request(name, age_s=9.0 - at) for at, name in enumerate(ids)]
    async with dashboard(fake, 100, 30) as tui:
        await tui.sees("● ready")
        await tui.press("t")
        await tui.sees("req_last")
        await tui.press("home", "down", "down", "down")
        await tui.until(lambda: any("▸req_last" in line for line in tui.lines))
