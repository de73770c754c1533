"""The TUI's pure parts: numbers, bars, history, filter, columns, layout, actions."""

from __future__ import annotations

import msgspec
import pytest

from fake_admin import event, status, worker
from lbhost_tui import actions, columns, detail, feed, header, keybar, layout, notice
from lbhost_tui import format as fmt
from lbhost_tui.export import standalone
from lbhost_tui.filter import Filter
from lbhost_tui.freshness import FADES_S, GONE_S, Age, Freshness
from lbhost_tui.history import SLOT_S, History
from lbhost_tui.orders import ORDERS
from lbhost_tui.paint import Parts, Role, fit, merge, spread, width_of
from tui_driver import plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (0, "0"),
        (0.04, "0.0"),
        (3.21, "3.2"),
        (9.96, "10"),
        (4, "4"),
        (412.4, "412"),
        (999.6, "1.0k"),
        (1234, "1.2k"),
        (38_000, "38k"),
        (1_500_000, "1.5M"),
        (-3.4, "-3.4"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert fmt.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (0.0004, "0.4ms"),
        (0.045, "45ms"),
        (0.9996, "1.0s"),
        (1.23, "1.2s"),
        (34.4, "34s"),
        (720, "12m"),
        (10800, "3h"),
    ],
)
def test_latencies_are_short(seconds: float | None, text: str) -> None:
    assert fmt.latency(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (12.9, "12s"), (252, "4m 12s"), (7980, "2h 13m"), (273_600, "3d 4h"), (-1, "0s")],
)
def test_spans_have_two_units(seconds: float, text: str) -> None:
    assert fmt.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0"), (312 * 2**20, "312M"), (1.25 * 2**30, "1.2G"), (1023 * 2**10, "1.0M")],  # noqa: RUF001
)
def test_sizes_are_short(count: float | None, text: str) -> None:
    assert fmt.size(count) == text


def test_runs_of_cpus_are_joined() -> None:
    assert fmt.cpus([3, 0, 1, 2, 8]) == "0-3,8"
    assert fmt.cpus([5]) == "5"
    assert fmt.cpus([]) == fmt.UNKNOWN


def test_a_bar_shows_something_as_soon_as_there_is_something() -> None:
    assert [fmt.filled(f, 8) for f in (None, 0.0, 0.01, 0.5, 1.0, 1.7)] == [0, 0, 1, 4, 8, 8]
    assert plain(columns.bar(0.5, 8, Role.BAR)) == "━━━━────"
    assert plain(columns.bar(None, 8, Role.BAR)) == " " * 8
    assert [fmt.level(f) for f in (None, 0.0, 0.5, 1.0)] == [" ", " ", "▅", "█"]


def test_zero_is_drawn_as_nothing() -> None:
    assert fmt.sparkline([None, 0.0, 0.1, 50.0, 100.0, 120.0], 100.0) == "  ▁▅██"
    assert fmt.sparkline([0.0, None], 0.0) == "  "
    assert fmt.level(0.0) == " "


def test_history_moves_only_when_a_slot_ends() -> None:
    history = History()
    for tick in range(12):
        history.add(1000.0 + tick * 0.5, float(tick))
    cells = history.cells(1005.9, 60)
    assert len(cells) == 60
    assert cells[-3:] == [1.5, 5.5, 9.5]
    assert cells[:-3] == [None] * 57
    assert history.cells(1005.0, 60) == cells
    assert history.cells(1006.0, 60)[-1] is None
    assert history.peak == 9.5


def test_history_forgets_after_two_minutes_and_fits_any_width() -> None:
    history = History()
    history.add(0.0, 7.0)
    assert history.cells(60 * SLOT_S - 0.1, 20)[0] == 7.0
    assert history.cells(60 * SLOT_S + 6.0, 20) == [None] * 20
    assert all(0 < len(history.cells(0.0, width)) <= width for width in range(1, 70))
    assert history.cells(0.0, 0) == []


def test_the_filter_takes_words_and_numbers() -> None:
    ready, failed = worker(1), worker(11, state="failed", last_exit="SIGKILL", gpu=0, cores=[])
    assert [Filter("").worker(w) for w in (ready, failed)] == [True, True]
    assert [Filter("READY").worker(w) for w in (ready, failed)] == [True, False]
    assert [Filter("1").worker(w) for w in (ready, failed)] == [True, False]
    assert [Filter("gpu0 sigkill").worker(w) for w in (ready, failed)] == [False, True]
    assert Filter("1").event(event())
    assert Filter("31").event(event())
    assert not Filter("3").event(event())
    assert Filter("state after").event(event())
    assert not Filter("state gateway").event(event())
    assert not Filter("1" * 5000).worker(ready)
    assert not Filter("1" * 5000).event(event())


def test_columns_never_take_more_than_there_is() -> None:
    for width in range(30, 260):
        placed = columns.place_columns(width, 4)
        assert sum(p.width + p.gap for p in placed) <= width
        assert [p.column.key for p in placed][:2] == ["id", "state"]


def test_columns_go_by_rank_and_come_back_with_width() -> None:
    at_80 = [p.column.key for p in columns.place_columns(79, 1)]
    assert {"idle", "others", "temp", "slots", "speed", "ttft", "kv", "spark"} <= set(at_80)
    at_140 = [p.column.key for p in columns.place_columns(139, 1)]
    assert at_140 == [column.key for column in columns.COLUMNS]


def test_unknown_readings_are_dashes_never_zeroes() -> None:
    bare = worker(0, idle=None, others=None, temp_c=None, ttft_s=None, memory=None, kv_total=0)
    row = columns.Row(worker=bare, gpu=None, cells=lambda width: [], top=0.0)
    said = {c.key: plain(c.cell(row, c.least)).strip() for c in columns.COLUMNS}
    for key in ("idle", "others", "temp", "ttft", "kv", "memory"):
        assert said[key] == fmt.UNKNOWN, key


def test_every_state_has_a_sign_of_its_own() -> None:
    names = ["starting", "ready", "draining", "resting", "stopping", "stopped", "backoff", "failed"]
    signs = [columns.STATES[name][0] for name in names]
    assert len(set(signs)) == len(signs)
    assert plain(columns.state("draining")) == "◐ draining"


def test_parts_are_cut_padded_and_merged() -> None:
    parts: Parts = (("lbhost", Role.KEY), (" ", Role.TEXT), ("model", Role.STRONG))
    assert plain(fit(parts, 9)) == "lbhost m…"
    assert plain(fit(parts, 14)) == "lbhost model  "
    assert plain(fit(parts, 14, right=True)) == "  lbhost model"
    assert plain(fit((("模型模型", Role.TEXT),), 6)) == "模型… "
    assert fit(parts, 0) == ()
    assert plain(spread(parts, (("up", Role.DIM),), 10)) == "lbhost …up"
    assert len(merge(parts)) == 2
    assert plain(merge(parts)) == plain(parts)


@pytest.mark.parametrize("context", keybar.Context)
@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 100, 140, 200])
def test_the_keys_fit_and_can_be_clicked(width: int, context: keybar.Context) -> None:
    line, spots = keybar.keys(width, context)
    assert width_of(line) <= width
    text = plain(line)
    assert "? help" in text
    keys = {key[3]: key[0] for key in keybar.KEYS[context]}
    assert len(spots) == len(keys) or width < 120
    for start, end, action in spots:
        assert text[start:end].startswith(keys[action] + " ")


def test_keys_that_order_something_are_not_offered_to_those_who_only_look() -> None:
    for context in keybar.Context:
        _, spots = keybar.keys(200, context, readonly=True)
        assert ORDERS.isdisjoint(action for _, _, action in spots)


def test_the_screen_is_shared_out() -> None:
    def plan(width: int, height: int, workers: int, **wish: bool) -> tuple[object, ...]:
        one = layout.plan(width, height, workers, 1, layout.Wish(**wish))
        return one.table, one.cores, one.requests, one.detail, one.log

    assert plan(80, 24, 2) == (None, 0, 0, False, False)
    assert plan(80, 24, 2, cores=True, log=True) == (3, 1, 0, False, True)
    assert plan(80, 24, 64, log=True) == (11, 0, 0, False, True)
    assert plan(80, 24, 64, detail=True, log=True) == (5, 0, 0, True, False)
    assert plan(140, 40, 64, detail=True, log=True) == (18, 0, 0, True, True)
    assert plan(80, 24, 2, cores=True, requests=True, log=True) == (3, 1, None, False, False)
    assert plan(120, 40, 4, cores=True, requests=True, log=True) == (5, 1, 11, False, True)
    assert plan(80, 14, 64, cores=True, requests=True) == (5, 0, None, False, False)


@pytest.mark.parametrize("width", [60, 79, 84, 119, 160])
def test_details_stay_inside_their_width(width: int) -> None:
    picture = status(2)
    some = worker(0, last_exit="killed by SIGSEGV", retry_in_s=2.0, state="backoff")
    page = detail.page(some, picture, width)
    assert "killed by SIGSEGV" in plain(page[1])
    assert all(width_of(line) <= width for line in page[2:])


def test_the_header_names_the_worst_of_the_queue() -> None:
    picture = status(1)
    assert [plain(f) for f in header.figures(None)] == [fmt.UNKNOWN] * 8
    assert plain(header.figures(picture)[6]) == "0 of 256"
    assert width_of(header.title(picture, 80)) == 80


def test_the_notice_speaks_up_only_when_something_is_up() -> None:
    assert notice.news(status(2), []) == ()
    gone = plain(notice.gone(12.3, "nobody listens on its socket"))
    assert "server gone, last seen 12s ago, reconnecting…" in gone
    assert "drain worker 1…" in plain(notice.news(status(2), ["drain worker 1"]))
    warned = msgspec.structs.replace(status(2), warnings=["the disk is gone: do this"])
    assert "the disk is gone: do this" in plain(notice.news(warned, []))


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120])
def test_the_models_name_is_the_last_to_go(width: int) -> None:
    picture = msgspec.structs.replace(status(1), model="SmolLM2-135M")
    line = header.title(picture, width)
    assert "SmolLM2-135M" in plain(line)
    assert width_of(line) == width


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_header_of_a_lost_server_says_since_when_and_nothing_of_its_state(width: int) -> None:
    for picture in (status(1), msgspec.structs.replace(status(1), state="degraded")):
        for seen_s, says in ((None, "✕ lost"), (1.6e9, f"✕ lost since {fmt.clock(1.6e9)}")):
            line = header.title(picture, width, header.lost(seen_s, unreadable=False))
            assert (says if width > 40 else "✕ lost") in plain(line)
            assert width_of(line) == width
            assert not any(word in plain(line) for word in ("ready", "degraded", "up "))
    other = header.title(status(1), width, header.lost(None, unreadable=True))
    assert "✕ other version" in plain(other)


def test_the_header_says_what_else_than_chat_is_served() -> None:
    assert "embedding" not in plain(header.title(status(1), 100))
    embeds = msgspec.structs.replace(status(1), kind="embedding")
    assert f"{embeds.model} embedding" in plain(header.title(embeds, 100))


def test_the_header_says_what_waits_fails_and_is_being_read() -> None:
    picture = status(1)
    reading = msgspec.structs.replace(
        picture.traffic, prompt_tokens_s=812.0, oldest_wait_s=41.0, error_rate=0.25
    )
    shown = header.figures(msgspec.structs.replace(picture, traffic=reading))
    assert [plain(figure) for figure in shown][1] == "812"
    assert shown[7] == (("25%", Role.BAD),)
    assert plain(header.figures(picture)[7]) == fmt.UNKNOWN
    slow = msgspec.structs.replace(
        reading,
        ttft_p95_queue_s=0.8,
        ttft_p95_prefill_s=0.3,
        ttft_p95_step_s=0.04,
        next_start_s=2.0,
    )
    busy = msgspec.structs.replace(picture, traffic=slow)
    why = header.why(busy, 80)
    assert ("41s", Role.BAD) in why
    said = " p95 = queue 800ms + prefill 300ms + step 40ms oldest waits 41s, next 2.0s"
    assert plain(why).split() == said.split()
    assert "first step 40ms" in plain(header.why(busy, 120))
    assert all(width_of(header.why(busy, width)) == width for width in (40, 80, 120, 200))
    assert "no request yet" in plain(header.why(picture, 80))


def test_old_figures_fade_go_and_never_outlive_their_process() -> None:
    freshness = Freshness()
    some = worker(0, tokens_out=10, ttft_s=6.1)
    freshness.note([some], 100.0)
    assert freshness.age(0, 100.0) is Age.FADED, "nobody knows from when it is"
    worked = msgspec.structs.replace(some, tokens_out=11)
    freshness.note([worked], 101.0)
    assert freshness.age(0, 101.0) is Age.FRESH
    freshness.note([worked], 101.0 + FADES_S)
    assert freshness.age(0, 101.0 + FADES_S) is Age.FADED
    assert freshness.age(0, 101.0 + GONE_S) is Age.GONE
    freshness.note([msgspec.structs.replace(worked, tokens_out=12)], 200.0)
    again = msgspec.structs.replace(worked, tokens_out=12, epoch=2)
    freshness.note([again], 200.5)
    assert freshness.age(0, 200.5) is Age.GONE
    freshness.note([msgspec.structs.replace(again, tokens_out=13)], 201.0)
    assert freshness.age(0, 201.0) is Age.FRESH
    assert freshness.age(7, 201.0) is Age.GONE
    assert columns.aged("6.1s", Age.GONE) == (fmt.UNKNOWN, Role.DIM)


def test_a_spare_does_not_count_when_scaling() -> None:
    spare = worker(2, spare=True)
    rolling = msgspec.structs.replace(status(2), workers=[*status(2).workers, spare])
    up, down = actions.scale(rolling, 1), actions.scale(rolling, -1)
    assert up is not None
    assert down is not None
    assert dict(up.body) == {"workers": 3}
    assert dict(down.body) == {"workers": 1}
    assert "Worker 1 finishes" in down.consequence
    assert "all 2 workers" in actions.restart_all(rolling).question
    row = columns.Row(worker=spare, gpu=None, cells=lambda width: [], top=0.0)
    assert plain(columns.COLUMNS[1].cell(row, 10)) == "● spare"


def test_a_failed_worker_says_which_key_starts_it() -> None:
    failed = worker(0, state="failed", last_exit="SIGSEGV")
    row = columns.Row(worker=failed, gpu=None, cells=lambda width: [], top=0.0)
    assert columns.COLUMNS[1].cell(row, 10)[-1] == (" u", Role.KEY)
    picture = msgspec.structs.replace(status(1), workers=[failed])
    assert "u starts it again" in plain(notice.news(picture, []))


def test_a_refusal_is_wrapped_and_not_cut() -> None:
    words = ((" scale: " + "so many do not fit here " * 6, Role.BAD),)
    lines = notice.wrapped(words, 80)
    assert 1 < len(lines) <= notice.LINES
    assert all(width_of(line) <= 80 for line in lines)


def test_what_stops_work_asks_first_and_what_does_not_does_not() -> None:
    picture = status(2)
    one = picture.workers[1]
    assert actions.drain(picture, one).question
    assert actions.restart(picture, one).question
    assert actions.restart_all(picture).question
    down, up = actions.scale(picture, -1), actions.scale(picture, 1)
    assert down is not None
    assert up is not None
    assert down.question
    assert not up.question
    assert not actions.resume(one).question
    assert (up.path, dict(up.body)) == ("/scale", {"workers": 3})
    assert actions.scale(status(1), -1) is None


def test_draining_the_last_ready_worker_says_what_that_means() -> None:
    alone = status(1)
    assert "will wait" in actions.drain(alone, alone.workers[0]).consequence
    assert "will wait" not in actions.drain(status(2), status(2).workers[0]).consequence


def test_the_pace_follows_the_work_and_the_cost() -> None:
    assert feed.pace(status(2), 0.0) == feed.QUIET_S
    draining = msgspec.structs.replace(status(1), workers=[worker(0, state="draining")])
    assert feed.pace(draining, 0.0) == feed.BUSY_S
    assert feed.pace(draining, 0.03) == pytest.approx(0.03 / feed.CPU_SHARE)
    assert feed.pace(draining, 9.0) == feed.SLOWEST_S
    assert [feed.backoff(n) for n in (1, 2, 99)] == [0.5, 1.0, 5.0]


def test_a_picture_needs_nothing_from_elsewhere() -> None:
    svg = (
        '<style>@font-face { src: url("https://example.org/a.woff2") } '
        ".a {font-family: Fira Code, monospace; font-size: 20px}</style>"
        '<text class="r" x="0" y="20" textLength="61" clip-path="u">&#160;&#160;a&#160;b</text>'
    )
    bare = standalone(svg)
    assert "https://" not in bare
    assert 'x="24.4" y="20" textLength="36.6" clip-path="u">a&#160;b</text>' in bare
