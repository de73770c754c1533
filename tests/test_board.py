"""The shared page: rows as written, unknown readings, torn reads, foreign descriptors."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from board_writer import row
from lbhost.board import (
    MOST_CPUS,
    Board,
    BoardError,
    CoreRow,
    GatewayRow,
    GpuRow,
    HostRow,
    IdentityRow,
    ProgressRow,
    TrafficRow,
    Wanted,
    WorkerState,
)
from lbhost.board_table import Table

CHANGES = 1000
READING_S = 120.0


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(workers=3, cores=4, gpus=2)
    yield made
    made.close()


def test_rows_come_back_as_written_in_another_mapping(board: Board) -> None:
    identity = IdentityRow(
        present=True,
        epoch=7,
        state=WorkerState.DRAINING,
        wanted=Wanted.UP,
        pid=123,
        gpu=-1,
        cpus=(0, 1, 4),
        slots=4,
        n_ctx=2048,
        started_ns=1 << 62,
        restarts=2,
        last_exit="SIGKILL",
    )
    board.identity.write(2, identity)
    board.traffic.write(1, TrafficRow(epoch=1, in_flight=2, ttft_s=0.5, error_rate=0.25))
    board.cores.write(3, CoreRow(sampled_ns=1, idle=0.0, temp_c=None))
    board.gpus.write(1, GpuRow(name="H100", clock_limit="thermal,power", temp_c=70.0))
    board.host.write(0, HostRow(psi_cpu=0.125))
    board.gateway.write(0, GatewayRow(pid=9, ttft_p50_s=None))
    other = Board.attach(os.dup(board.fd))
    assert other.identity.read(2) == identity
    assert isinstance(other.identity.read(2).state, WorkerState)  # type: ignore[union-attr]
    assert other.traffic.read(1) == board.traffic.read(1)
    assert other.cores.read(3) == CoreRow(sampled_ns=1, idle=0.0, temp_c=None)
    assert other.gpus.read(1) == GpuRow(name="H100", clock_limit="thermal,power", temp_c=70.0)
    assert other.host.read(0) == HostRow(psi_cpu=0.125)
    assert other.gateway.read(0) == GatewayRow(pid=9)


def test_a_row_that_was_never_written_has_the_defaults(board: Board) -> None:
    assert board.progress.read(0) == ProgressRow()
    assert board.identity.read(1) == IdentityRow()
    assert board.cores.read(0) == CoreRow()


def test_unknown_is_none_and_never_zero(board: Board) -> None:
    board.cores.write(0, CoreRow(idle=None, temp_c=0.0))
    found = board.cores.read(0)
    assert found is not None
    assert found.idle is None
    assert found.temp_c == 0.0


def test_long_texts_are_cut_and_never_break_a_character(board: Board) -> None:
    board.identity.write(0, IdentityRow(last_exit="é" * 100))
    board.identity.write(1, IdentityRow(pid=5))
    assert board.identity.read(1) == IdentityRow(pid=5)
    found = board.identity.read(0)
    assert found is not None
    assert found.last_exit.startswith("é" * 31)


@given(
    numbers=st.lists(st.integers(0, (1 << 63) - 1), min_size=9, max_size=9),
    reals=st.lists(st.none() | st.floats(allow_nan=False), min_size=3, max_size=3),
    steps_s=st.lists(st.floats(width=32, allow_nan=False), max_size=16),
)
def test_any_row_survives_the_page(
    numbers: list[int], reals: list[float | None], steps_s: list[float]
) -> None:
    board = Board.create(workers=1, cores=1, gpus=0)
    written = ProgressRow(
        epoch=numbers[0],
        heartbeat_ns=numbers[1],
        steps=numbers[2],
        slots_busy=numbers[3],
        waiting=numbers[4],
        prefill_pending=numbers[5],
        kv_used=numbers[6],
        rss_bytes=numbers[7],
        tokens_out=numbers[8],
        prefill_tok_s=reals[0],
        step_base_s=reals[1],
        step_seq_s=reals[2],
        steps_s=tuple(steps_s),
    )
    board.progress.write(0, written)
    assert board.progress.read(0) == written
    board.close()


def test_rows_outside_the_table_are_refused(board: Board) -> None:
    for index in (-1, 3, 1000):
        with pytest.raises(IndexError):
            board.identity.read(index)
        with pytest.raises(IndexError):
            board.identity.write(index, IdentityRow())


def test_foreign_descriptors_are_no_boards(tmp_path: Path, board: Board) -> None:
    path = tmp_path / "file"
    for content in (b"", b"x" * 10, b"x" * 100_000, os.pread(board.fd, 256, 0)):
        path.write_bytes(content)
        with path.open("rb+") as file, pytest.raises(BoardError):
            Board.attach(file.fileno())


def test_a_writer_that_died_half_way_leaves_an_unreadable_row_for_its_successor(
    board: Board,
) -> None:
    board.progress.write(0, row(1))
    table = board.progress
    at = table._at(0)
    table._seqs[at // 8] += 1
    assert table.read(0) is None
    table.write(0, row(2))
    assert table.read(0) == row(2)
    assert table._seqs[at // 8] % 2 == 0


def test_a_write_that_does_not_end_holds_up_nobody(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With others on the core a thousand yields to them take seconds."""
    table, yields = board.progress, list[None]()
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(None))
    for number in (0, 1):
        table.write(number, row(1))
    assert table.read(0) == row(1)
    for number in (0, 1):
        table._seqs[table._at(number) // 8] += 1
    assert table.read(0) == row(1), "what was read last"
    assert not yields
    assert table.read(1) is None
    assert 0 < len(yields) <= 10
    yields.clear()
    assert table.read(1) is None
    assert not yields, "it was waited for once"
    for number in (0, 1):
        table.write(number, row(2))
        assert table.read(number) == row(2)
    assert table.read(2) == ProgressRow(), "another one's"


def test_a_state_that_there_is_not_makes_no_row(board: Board) -> None:
    strange = IdentityRow(present=True, state=cast("WorkerState", 99))
    board.identity.write(0, strange)
    assert board.identity.read(0) is None
    board.identity.write(0, IdentityRow(present=True))
    assert board.identity.read(0) == IdentityRow(present=True)
    board.identity.write(0, strange)
    assert board.identity.read(0) == IdentityRow(present=True), "what was read last"


def test_every_flipped_bit_is_noticed(board: Board) -> None:
    table = board.progress
    table.write(0, row(4))
    at, rng = table._at(0), random.Random(1)
    for _ in range(40):
        where = at + 8 + rng.randrange(table._size)
        mask = 1 << rng.randrange(8)
        table._page[where] ^= mask
        assert table.read(0) is None
        table._page[where] ^= mask
    assert table.read(0) == row(4)


def test_reads_beside_a_writing_process_tear_no_row(board: Board) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "board_writer", str(board.fd), "300"],
        pass_fds=(board.fd,),
        cwd=Path(__file__).parent,
    )
    try:
        read, last, changes, reads, unreadable = board.progress.read, 0, 0, 0, 0
        while not last:
            first = read(0)
            last = first.epoch if first is not None else 0
        end = time.monotonic() + READING_S
        while changes < CHANGES and time.monotonic() < end:
            found = read(0)
            reads += 1
            if found is None:
                unreadable += 1
                continue
            n = found.epoch
            if n != last:
                assert n > last
                assert found == row(n)
                last, changes = n, changes + 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert changes > 300
    # A writer that is not on a core in the middle of a write makes some so, one after the other.
    assert unreadable < max(CHANGES / 10, reads / 1000)


def test_a_row_that_has_not_changed_is_not_decoded_again(board: Board) -> None:
    board.progress.write(0, row(1))
    first = board.progress.read(0)
    assert board.progress.read(0) is first
    board.progress.write(0, row(1))
    assert board.progress.read(0) is not first
    assert board.progress.read(0) == first


def test_a_column_of_a_type_that_the_page_does_not_know_is_refused() -> None:
    class Strange(msgspec.Struct, frozen=True):
        when: complex = 0j

    with pytest.raises(TypeError, match=r"Strange\.when"):
        Table.bytes_needed(Strange, 1)


def test_a_worker_of_thousands_of_cpus_keeps_its_list(board: Board) -> None:
    every_other = tuple(range(0, MOST_CPUS, 2))
    board.identity.write(0, IdentityRow(cpus=every_other))
    row = board.identity.read(0)
    assert row is not None
    assert row.cpus == every_other


@pytest.mark.parametrize("size", [0, 4096, 1 << 30])
def test_no_child_can_cut_the_board_under_the_others(board: Board, size: int) -> None:
    inherited = os.dup(board.fd)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(inherited, size)
    finally:
        os.close(inherited)
    board.identity.write(2, IdentityRow(pid=7))
    assert board.identity.read(2) == IdentityRow(pid=7)
