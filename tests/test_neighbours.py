"""Workers of several models on one core: who computes beside whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lbhost.board import IdentityRow, ProgressRow
from lbhost.gateway.scheduling.neighbours import LOOK_S, Neighbours, most_beside
from lbhost.gateway.scheduling.readings import WorkerReading


class One(msgspec.Struct):
    """A worker's process with so many requests."""

    worker: int
    cpus: tuple[int, ...]
    attempts: list[int] = []
    gpu: int = -1


class Model:
    """One model's workers, and what the board says of them."""

    def __init__(self, *workers: One) -> None:
        self.workers = list(workers)
        self.changes = len(workers)
        self.readings: Any = self

    def all(self) -> Sequence[One]:
        return self.workers

    def worker(self, index: int) -> WorkerReading | None:
        for one in self.workers:
            if one.worker == index:
                identity = IdentityRow(present=True, cpus=one.cpus, gpu=one.gpu)
                return WorkerReading(identity, ProgressRow(), 1.0, None, None, None)
        return None


def test_who_computes_on_the_same_core_counts_and_nobody_else() -> None:
    chat, other = One(0, (0,)), One(1, (1,))
    embedding = One(2, (0,))
    neighbours = Neighbours(clock=lambda: 0.0)
    neighbours.add(Model(chat, other))
    neighbours.add(Model(embedding))
    assert neighbours.computing(chat) == 0, "nobody computes"
    embedding.attempts.append(1)
    assert (neighbours.computing(chat), neighbours.computing(other)) == (1, 0)
    assert neighbours.computing(embedding) == 0, "not beside itself"
    chat.attempts.append(1)
    assert neighbours.computing(embedding) == 1
    embedding.attempts.clear()
    assert neighbours.computing(chat) == 0


def test_one_model_alone_has_no_neighbours() -> None:
    neighbours = Neighbours()
    neighbours.add(Model(One(0, (0,), [1]), One(1, (0,), [1])))
    assert neighbours.computing(One(0, (0,))) == 0


def test_homes_are_looked_at_anew_when_workers_come_and_now_and_then() -> None:
    now = 0.0
    neighbours = Neighbours(clock=lambda: now)
    chat, model = One(0, (0,)), Model()
    neighbours.add(Model(chat))
    neighbours.add(model)
    assert neighbours.computing(chat) == 0
    model.workers.append(One(1, (0,), [1]))
    model.changes += 1
    assert neighbours.computing(chat) == 1
    model.workers[0].cpus = (3,)
    now += 2 * LOOK_S
    assert neighbours.computing(chat) == 0


def test_a_worker_on_a_gpu_is_nobodys_neighbour() -> None:
    chat = One(0, (0,))
    neighbours = Neighbours(clock=lambda: 0.0)
    neighbours.add(Model(chat))
    neighbours.add(Model(One(1, (0,), [1], gpu=0)))
    assert neighbours.computing(chat) == 0


@given(st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.booleans()), min_size=1))
def test_the_slowest_core_decides(made: list[tuple[set[int], bool]]) -> None:
    everybody = [
        One(i, tuple(cpus), [1] if computing else []) for i, (cpus, computing) in enumerate(made)
    ]
    at_home = {cpu: [one for one in everybody if cpu in one.cpus] for cpu in range(4)}
    for one in everybody:
        found = most_beside(one, one.cpus, at_home)
        each = [
            sum(bool(other.attempts) for other in at_home[cpu] if other is not one)
            for cpu in one.cpus
        ]
        assert found == max(each)
