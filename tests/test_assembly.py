"""What status makes of the board's rows about traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest

from lbhost.board import Board, GatewayRow
from lbhost.config import Settings
from lbhost.supervisor.assembly import GATEWAY_FRESH_NS, Assembly

ROW = GatewayRow(
    requests=9,
    errors=2,
    rejected=1,
    in_flight=3,
    queue_depth=4,
    requests_s=1.5,
    tokens_s=100.0,
    ttft_p50_s=0.5,
    ttft_p95_s=0.9,
    ttft_p95_queue_s=0.4,
    ttft_p95_prefill_s=0.3,
    ttft_p95_step_s=0.2,
    next_start_s=3.5,
    prompt_tokens_s=700.0,
    oldest_wait_s=2.5,
    error_rate=0.25,
)


@pytest.fixture
def page() -> Iterator[Board]:
    made = Board.create(workers=1, cores=1, gpus=0)
    yield made
    made.close()


def assembly(page: Board) -> Assembly:
    return Assembly(Settings(), page)


def test_the_gateways_figures_are_shown(page: Board) -> None:
    page.gateway.write(0, msgspec.structs.replace(ROW, heartbeat_ns=time.monotonic_ns()))
    shown = assembly(page).traffic()
    assert (shown.tokens_s, shown.prompt_tokens_s) == (100.0, 700.0)
    assert (shown.oldest_wait_s, shown.error_rate) == (2.5, 0.25)
    parts = (shown.ttft_p95_queue_s, shown.ttft_p95_prefill_s, shown.ttft_p95_step_s)
    assert (parts, shown.next_start_s) == ((0.4, 0.3, 0.2), 3.5)


def test_of_a_gateway_that_is_gone_only_totals_are_shown(page: Board) -> None:
    old = time.monotonic_ns() - 2 * GATEWAY_FRESH_NS
    page.gateway.write(0, msgspec.structs.replace(ROW, heartbeat_ns=old))
    shown = assembly(page).traffic()
    assert (shown.requests, shown.errors, shown.rejected) == (9, 2, 1)
    assert (shown.in_flight, shown.queue_depth, shown.requests_s) == (0, 0, 0.0)
    assert (shown.tokens_s, shown.prompt_tokens_s) == (0.0, 0.0)
    assert (shown.ttft_p50_s, shown.oldest_wait_s, shown.error_rate) == (None, None, None)


def test_the_store_is_shown_and_is_empty_without_a_gateway(page: Board) -> None:
    now, old = time.monotonic_ns(), time.monotonic_ns() - 2 * GATEWAY_FRESH_NS
    row = GatewayRow(
        states=3, state_bytes=300, state_limit=1000, state_tokens=77, states_movable=False
    )
    page.gateway.write(0, msgspec.structs.replace(row, heartbeat_ns=now))
    shown = assembly(page).states()
    assert (shown.entries, shown.bytes, shown.limit, shown.tokens) == (3, 300, 1000, 77)
    assert not shown.movable
    page.gateway.write(0, msgspec.structs.replace(row, heartbeat_ns=old))
    assert assembly(page).states().entries == 0
