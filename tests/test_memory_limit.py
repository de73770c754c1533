"""Workers over their memory limit: who is replaced when; pure, and over stand-ins."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path

import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import StartupError, UsageError
from lbhost.linux import anonymous_bytes
from lbhost.placement.memory import WORKER_BYTES, require_within
from lbhost.setting_sources import load
from lbhost.supervisor import pool
from lbhost.supervisor.memory_limit import HASTE, OVER_S, MemoryLimit, Used, Verdict
from supervising import box

LIMIT = 1000


class Watch:
    """A limit, and the time."""

    def __init__(self, budget: int = 5) -> None:
        self.limit = MemoryLimit()
        self.limit.adopt(Settings(memory_limit=LIMIT, restart_window_s=60.0, restart_budget=budget))
        self.now_s = 0.0

    def see(self, *own: int, epoch: int = 1, busy: bool = False) -> dict[int, Verdict]:
        """A look at workers that have so much, half a second after the last."""
        self.now_s += 0.5
        used = [Used(worker, epoch, size) for worker, size in enumerate(own)]
        return self.limit.judge(used, others_down=busy, now_s=self.now_s)

    def insist(self, *own: int, epoch: int = 1, busy: bool = False) -> dict[int, Verdict]:
        """Looks until OVER_S is over; nothing may be said before."""
        for _ in range(int(OVER_S / 0.5)):
            assert self.see(*own, epoch=epoch, busy=busy) == {}
        return self.see(*own, epoch=epoch, busy=busy)


def test_a_worker_at_its_limit_is_let_be() -> None:
    assert Watch().insist(LIMIT) == {}


def test_a_worker_that_stays_over_its_limit_is_replaced() -> None:
    assert Watch().insist(LIMIT + 1) == {0: Verdict.REPLACE}


def test_without_a_limit_nobody_is_judged() -> None:
    watch = Watch()
    watch.limit.adopt(Settings())
    assert watch.insist(1 << 40) == {}


def test_a_moment_over_the_limit_does_not_count() -> None:
    watch = Watch()
    for own in (LIMIT + 1, LIMIT + 1, LIMIT, LIMIT + 1, LIMIT + 1, LIMIT):
        assert watch.see(own) == {}


def test_a_new_process_is_judged_afresh() -> None:
    watch = Watch()
    watch.insist(LIMIT + 1)
    assert watch.insist(LIMIT + 1, epoch=2) == {0: Verdict.REPLACE}


def test_one_is_replaced_at_a_time_the_largest_first() -> None:
    watch = Watch()
    assert watch.insist(LIMIT + 1, LIMIT + 2) == {1: Verdict.REPLACE}
    assert watch.see(LIMIT + 1, busy=True) == {}
    assert watch.see(LIMIT + 1) == {0: Verdict.REPLACE}


def test_one_far_over_its_limit_waits_for_nobody() -> None:
    own = int(HASTE * LIMIT) + 1
    assert Watch().insist(own, own, busy=True) == {0: Verdict.REPLACE_NOW, 1: Verdict.REPLACE_NOW}


def test_one_that_is_replaced_again_and_again_runs_on_and_that_is_told_once() -> None:
    watch = Watch(budget=2)
    assert watch.insist(LIMIT + 1) == {0: Verdict.REPLACE}
    assert watch.insist(LIMIT + 1, epoch=2) == {0: Verdict.REPLACE}
    assert watch.insist(LIMIT + 1, epoch=3) == {0: Verdict.LET_BE}
    assert watch.insist(LIMIT + 1, epoch=3) == {}
    watch.see(LIMIT - 1, epoch=3)  # not calm yet
    assert watch.insist(LIMIT + 1, epoch=3) == {}
    watch.see(LIMIT // 2, epoch=3)
    assert watch.insist(LIMIT + 1, epoch=3) == {0: Verdict.LET_BE}
    watch.now_s += 60.0
    assert watch.insist(LIMIT + 1, epoch=4) == {0: Verdict.REPLACE}


@pytest.mark.anyio
async def test_one_far_over_its_limit_is_replaced_once_and_not_in_its_turn_of_a_rolling_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(memory_limit="1G", shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, workers=3) as running:
        running.tell("worker-0", "busy")  # it is the first one's turn until its work is over
        restarting = asyncio.create_task(running.server.restart_all())
        await running.state(0, WorkerState.DRAINING)
        large = running.pid(2)
        monkeypatch.setattr(pool, "anonymous_bytes", lambda pid: (pid == large) << 31)
        await running.until(lambda: running.worker(2).epoch == 2, "it has a new process")
        assert running.worker(0).state is WorkerState.DRAINING
        await running.state(2, WorkerState.READY)
        running.tell("worker-0", "")
        assert await restarting == "rolling restart done: 3 workers"
        assert running.worker(2).memory_restarts == 1
        assert len(running.kinds("memory_limit")) == 1


def test_memory_of_a_process_is_what_no_file_backs() -> None:
    before = anonymous_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(b"x" * len(taken))
        after = anonymous_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert 60 << 20 < after - before < 256 << 20
    assert anonymous_bytes(0x7FFFFFFF) is None


@pytest.mark.parametrize(
    ("given", "expected"), [("none", None), ("512M", 512 << 20), ("2g", 2 << 30), ("4096", 4096)]
)
def test_the_limit_is_a_size(given: str, expected: int | None) -> None:
    assert load({"memory_limit": given}, {}).memory_limit_bytes == expected
    assert load({}, {"LBHOST_MEMORY_LIMIT": given}).memory_limit_bytes == expected


def test_a_limit_that_is_no_size_is_refused() -> None:
    with pytest.raises(UsageError, match="memory_limit is 'none' or a size"):
        load({"memory_limit": "much"}, {})


def test_a_limit_that_no_worker_fits_is_refused_at_the_start() -> None:
    require_within(WORKER_BYTES + 4 * 256 * 10, 10, slots=4, n_ctx=256)
    require_within(None, 10, slots=4, n_ctx=256)
    with pytest.raises(StartupError, match=r"--memory-limit is 64 MiB, .* --ctx-size or --slots"):
        require_within(WORKER_BYTES, 1 << 10, slots=4, n_ctx=256)
    assert Settings().memory_limit_bytes is None
