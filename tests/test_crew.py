"""A worker's threads: how many, and where they run; on the kernel's own threads as well."""

from __future__ import annotations

import os
import threading

import pytest

from lbhost.worker.crew import Crew, KernelThreads


class FakeThreads:
    """A process whose helpers inherit the main thread's mask when they are made."""

    def __init__(self, home: set[int]) -> None:
        self.masks: dict[int, set[int]] = {0: home}
        self.offline: set[int] = set()
        self.calls = 0

    def make(self, count: int) -> None:
        """As the OpenMP runtime does when a step wants more threads than there are."""
        for thread in range(len(self.masks), count):
            self.masks[thread] = set(self.masks[0])

    def all(self) -> list[int]:
        return sorted(self.masks)[1:]

    def affinity(self, thread: int) -> set[int]:
        return set(self.masks[thread])

    def pin(self, thread: int, cpus: set[int]) -> None:
        self.calls += 1
        if not cpus - self.offline:
            raise OSError(22, "Invalid argument")
        self.masks[thread] = cpus - self.offline


class Bench:
    """A crew with its fakes."""

    def __init__(self, home: set[int], own: int = 1) -> None:
        self.threads = FakeThreads(home)
        self.threads.make(own)
        self.counts: list[int] = []
        self.crew = Crew(own, self.counts.append, self.threads)

    def step(self, width: int) -> dict[int, set[int]]:
        """Compute one step; where the threads were while it was computed."""
        self.crew.use(width)
        self.crew.before()
        self.threads.make(width)
        during = {thread: set(mask) for thread, mask in self.threads.masks.items()}
        self.crew.after()
        return during


def test_nothing_is_touched_while_nothing_is_lent() -> None:
    bench = Bench({3})
    bench.step(1)
    assert bench.threads.calls == 0
    assert bench.counts == []
    assert bench.crew.widest == 1


def test_helpers_run_where_was_lent_and_the_engines_thread_at_home() -> None:
    bench = Bench({3})
    bench.crew.lend((5, 7))
    assert bench.step(3)[0] == {3, 5, 7}, "new threads may start on any of them"
    assert bench.threads.masks == {0: {3}, 1: {5}, 2: {7}}
    assert bench.counts == [3]
    calls = bench.threads.calls
    assert bench.step(3) == {0: {3}, 1: {5}, 2: {7}}
    assert bench.threads.calls == calls, "a step like the last one costs no call"


def test_fewer_threads_take_the_nearest_cores() -> None:
    bench = Bench({3})
    bench.crew.lend((5, 7))
    bench.step(3)
    assert bench.step(2)[1] == {5}
    assert bench.crew.lent == (5,)
    assert bench.crew.widest == 3


def test_what_is_asked_back_is_not_used_by_the_next_step() -> None:
    bench = Bench({3})
    bench.crew.lend((5,))
    bench.step(2)
    bench.crew.lend(())
    assert bench.crew.width == 1
    assert bench.crew.lent == ()
    assert bench.counts == [2, 1]


def test_other_cores_are_taken_before_the_step() -> None:
    bench = Bench({3})
    bench.crew.lend((5,))
    bench.step(2)
    bench.crew.lend((9,))
    assert bench.step(2) == {0: {3}, 1: {9}}


def test_own_helpers_stay_at_home() -> None:
    bench = Bench({0, 1}, own=2)
    bench.crew.lend((4,))
    bench.step(3)
    assert bench.threads.masks == {0: {0, 1}, 1: {0, 1}, 2: {4}}


def test_a_core_that_went_offline_is_given_up() -> None:
    bench = Bench({3})
    bench.crew.lend((5,))
    bench.threads.offline = {5}
    bench.step(2)
    assert bench.crew.width == 1
    assert bench.threads.masks[0] == {3}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to move between")
def test_the_kernels_threads_are_pinned_one_by_one() -> None:
    home, other, *_ = sorted(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    stop = threading.Event()
    helper = threading.Thread(target=stop.wait)
    others = set(KernelThreads().all())  # of other tests; their ids may be above or below

    class OnlyOurs(KernelThreads):
        def all(self) -> list[int]:
            return [thread for thread in super().all() if thread not in others]

    crew = Crew(1, lambda _: None, OnlyOurs())
    try:
        os.sched_setaffinity(0, {home})
        helper.start()
        assert helper.native_id is not None
        crew.lend((other,))
        crew.use(crew.own + 1)
        crew.before()
        crew.after()
        assert os.sched_getaffinity(helper.native_id) == {other}
        assert os.sched_getaffinity(0) == {home}
    finally:
        stop.set()
        helper.join()
        os.sched_setaffinity(0, before)
