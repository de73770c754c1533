"""Who goes next when several clients want more than there is: properties of the pure queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost import order, wire
from lbhost.gateway.scheduling.fairness import (
    MOST_CLIENTS,
    OF_FREE,
    VirtualTokens,
    may_wait,
    most_at_once,
)
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.job_queue import LOOKAHEAD, JobQueue, _Lines, _Walk

PROMPT_S, OUTPUT_S = 1.0, 3.0


def job(
    number: int,
    client: str = "",
    *,
    place: float = 0.0,
    tokens: int = 10,
    output: int = 20,
    rank: int = order.DEFAULT,
    weight: float = 1.0,
) -> Job:
    prompt = wire.pack_tokens(list(range(tokens)))
    work = Work(prompt, tokens, output, wire.Sampling(), rank=rank, client=client, weight=weight)
    made = Job(number, work, arrived=place)
    made.order = place
    return made


class Box:
    """So many slots, which generate a token a turn; the queue is charged as the dispatcher does."""

    def __init__(self, slots: int) -> None:
        self.queue = JobQueue()
        self.slots = slots
        self.running: dict[Job, int] = {}
        self.begun: list[Job] = []
        self.had: dict[str, float] = {}

    def charge(self, job: Job, cost: float) -> None:
        self.queue.charge(job, cost)
        name = job.work.client
        self.had[name] = self.had.get(name, 0.0) + cost

    def turn(self) -> None:
        for one in self.queue.walk(lambda: True, lambda: True):
            if len(self.running) >= self.slots:
                break
            self.queue.remove(one)
            self.charge(one, one.work.prompt_tokens * PROMPT_S)
            self.running[one] = one.work.max_tokens
            self.begun.append(one)
        for one in list(self.running):
            self.charge(one, OUTPUT_S)
            self.running[one] -= 1
            if not self.running[one]:
                del self.running[one]


lengths = st.tuples(st.integers(1, 400), st.integers(1, 60))


@given(st.lists(lengths, min_size=1, max_size=40), lengths, st.integers(1, 8), st.integers(0, 400))
def test_a_single_request_passes_all_that_another_client_has_waiting(
    flood: list[tuple[int, int]], single: tuple[int, int], slots: int, after: int
) -> None:
    box = Box(slots)
    for number in range(200):
        tokens, output = flood[number % len(flood)]
        box.queue.add(job(number, "flood", place=number * 0.01, tokens=tokens, output=output))
    for _ in range(after):
        box.turn()
    if not len(box.queue):
        return
    begun = len(box.begun)
    made = job(1000, "single", place=1e6, tokens=single[0], output=single[1])
    box.queue.add(made)
    longest = max(output for _, output in flood)
    for _ in range(longest + 1):
        box.turn()
    # Of two that have had as much the one that came first goes: one of the others at most.
    assert made in box.begun
    assert box.begun.index(made) - begun <= 1


@given(
    st.lists(lengths, min_size=1, max_size=10),
    st.lists(lengths, min_size=1, max_size=10),
    st.integers(1, 6),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_two_clients_that_always_want_more_get_what_their_weights_say(
    ones: list[tuple[int, int]], others: list[tuple[int, int]], slots: int, weight: float
) -> None:
    box = Box(slots)
    number = 0
    for client, kinds, its in (("a", ones, weight), ("b", others, 1.0)):
        for _ in range(300):
            number += 1
            tokens, output = kinds[number % len(kinds)]
            box.queue.add(job(number, client, tokens=tokens, output=output, weight=its))
    most = max(400 * PROMPT_S, slots * 60 * OUTPUT_S)
    for _ in range(200):
        box.turn()
        if not (box.queue.of_client("a") and box.queue.of_client("b")):
            break
        apart = box.had.get("a", 0.0) / weight - box.had.get("b", 0.0)
        assert abs(apart) <= 2 * most / min(1.0, weight)


places = st.lists(st.floats(0, 100), max_size=50)


@given(places, places, st.booleans())
def test_with_one_client_the_order_is_that_of_the_jobs(
    short: list[float], long: list[float], priority: bool
) -> None:
    queue = JobQueue()
    jobs = [job(n, place=place) for n, place in enumerate(short)]
    jobs += [job(100 + n, place=place, tokens=900) for n, place in enumerate(long)]
    if priority:
        jobs += [job(500 + n, place=n, rank=order.PRIORITY) for n in range(5)]
    for one in jobs:
        queue.add(one)
    in_order = sorted(jobs, key=lambda j: (j.order, j.number))
    assert all(queue.ahead(one) == place for place, one in enumerate(in_order))
    got = []
    for one in queue.walk(lambda: True, lambda: True):
        queue.remove(one)
        queue.charge(one, 10.0)
        got.append(one)
    assert got == in_order
    assert len(queue) == 0


def test_classes_come_before_fairness_and_fairness_is_within_one() -> None:
    queue = JobQueue()
    rich, poor = job(1, "rich", place=0.0), job(2, "poor", place=1.0)
    first = job(3, "rich", place=-30.0, rank=order.PRIORITY)
    for one in (rich, poor, first, job(4, "poor", rank=order.FLEX), job(5, "rich", place=50.0)):
        queue.add(one)
    queue.charge(rich, 100.0)
    queue.charge(first, 100.0)
    got = []
    for one in queue.walk(lambda: True, lambda: True):
        queue.remove(one)
        got.append(one.number)
    assert got == [3, 2, 1, 5, 4]


def test_who_stayed_away_has_saved_nothing_up() -> None:
    counters = VirtualTokens()
    counters.joins("busy")
    counters.charge("busy", 100.0)
    counters.joins("new")
    assert counters.had("new") == 100.0
    counters.leaves("new")
    counters.charge("busy", 50.0)
    counters.leaves("busy")
    counters.joins("later")  # nobody waits: as much as the one that left last
    assert counters.had("later") == 150.0


def test_clients_that_are_gone_are_forgotten_when_there_are_many() -> None:
    counters = VirtualTokens()
    for number in range(3 * MOST_CLIENTS):
        counters.joins(f"k{number}")
        counters.charge(f"k{number}", 1.0)
        counters.leaves(f"k{number}")
    counters.joins("new")
    assert counters.had("new") == counters.had(f"k{3 * MOST_CLIENTS - 1}")
    assert len(counters._had) <= MOST_CLIENTS + 1


def test_what_cannot_be_placed_is_looked_at_within_bounds_whoever_sent_it() -> None:
    queue = JobQueue()
    for number in range(100):
        queue.add(job(number, f"k{number % 10}", tokens=900 if number % 2 else 10))
    assert len(list(queue.walk(lambda: True, lambda: True))) == 2 * LOOKAHEAD
    assert len(list(queue.walk(lambda: False, lambda: True))) == LOOKAHEAD


def test_a_pass_over_many_clients_looks_at_each_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = JobQueue()
    for number in range(1000):
        queue.add(job(number, f"k{number}", place=float(number)))
    looks: list[str] = []
    look = _Walk._head

    def counting(walk: _Walk, index: int, client: str, lines: _Lines) -> Job | None:
        looks.append(client)
        return look(walk, index, client, lines)

    monkeypatch.setattr(_Walk, "_head", counting)
    placed = []
    for one in queue.walk(lambda: True, lambda: True):
        queue.remove(one)
        queue.charge(one, 1.0)
        placed.append(one.number)
    assert placed == list(range(1000))
    assert len(looks) <= 3 * 1000


def test_a_predicted_place_counts_turns_not_the_other_clients_whole_line() -> None:
    queue = JobQueue()
    for number in range(50):
        queue.add(job(number, "flood", place=float(number)))
    assert queue.ahead(job(100, "single", place=1e6)) == 1
    assert queue.ahead(job(101, "flood", place=1e6)) == 50
    queue.add(job(102, "single", place=2e6))
    assert queue.ahead(job(103, "single", place=3e6, weight=2.0)) == 2
    assert queue.ahead(job(104, "flood", place=1e6)) == 51
    heavy = JobQueue()
    for number in range(9):
        heavy.add(job(number, "heavy", place=float(number), weight=3.0))
    assert heavy.ahead(job(100, "single", place=1e6)) == 3


@given(st.integers(1, 1000), st.integers(1, 20))
def test_however_many_clients_flood_a_newcomer_finds_a_place(places: int, floods: int) -> None:
    own = [0] * floods
    moved = True
    while moved:
        moved = False
        for i in range(floods):
            if sum(own) < places and may_wait(own[i], sum(own), places):
                own[i] += 1
                moved = True
    if places > OF_FREE * floods + 1:
        assert sum(own) < places
        assert may_wait(0, sum(own), places)
    if floods == 1:
        assert own[0] == most_at_once(places)
