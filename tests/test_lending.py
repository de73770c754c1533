"""Who gets which cores: a pure function, over boxes that hypothesis makes up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.scheduling.lending import Core, Home, lend


def home(worker: int, *cpus: int, computing: bool = False, idle: bool | None = None) -> Home:
    return Home(worker, cpus or (worker,), computing, not computing if idle is None else idle)


def cores(count: int) -> list[Core]:
    return [Core(cpu) for cpu in range(count)]


def test_one_worker_gets_every_idle_core() -> None:
    homes = [home(0, computing=True), home(1), home(2), home(3)]
    assert lend(homes, cores(4)) == {0: (1, 2, 3)}


def test_two_share_evenly() -> None:
    homes = [home(0, computing=True), home(1), home(2, computing=True), home(3), home(4), home(5)]
    assert {w: len(c) for w, c in lend(homes, cores(6)).items()} == {0: 2, 2: 2}


def test_nobody_lends_what_he_needs() -> None:
    assert lend([home(0, computing=True), home(1, computing=True)], cores(2)) == {0: (), 1: ()}
    starting = home(1, idle=False)
    assert lend([home(0, computing=True), starting], cores(2)) == {0: ()}


def test_cores_without_a_worker_are_lent_too() -> None:
    assert lend([home(0, computing=True)], cores(4)) == {0: (1, 2, 3)}


def test_a_core_that_others_use_or_a_hot_one_is_not_lent() -> None:
    box = [Core(0), Core(1, open=False), Core(2)]
    assert lend([home(0, computing=True), home(1), home(2)], box) == {0: (2,)}


def test_the_same_cache_comes_first_and_another_node_never() -> None:
    box = [Core(0, llc=0), Core(1, llc=4), Core(2, llc=0), Core(3, llc=8, node=1)]
    assert lend([home(0, computing=True)], box) == {0: (2, 1)}


def test_slow_cores_are_not_lent_to_fast_ones() -> None:
    box = [Core(0), Core(1, efficiency=True), Core(2)]
    assert lend([home(0, computing=True)], box) == {0: (2,)}
    assert lend([home(1, computing=True)], [*box, Core(3, efficiency=True)]) == {1: (3,)}


def test_no_more_than_the_quota() -> None:
    homes = [home(0, computing=True), home(1), home(2), home(3)]
    assert lend(homes, cores(4), limit=2) == {0: (1,)}
    assert lend(homes, cores(4), limit=1) == {0: ()}
    assert lend(homes, cores(4), limit=0) == {0: ()}
    two = [home(0, computing=True), home(1, computing=True), home(2), home(3)]
    assert lend(two, cores(4), limit=3) == {0: (2,), 1: ()}


def test_who_has_a_core_keeps_it() -> None:
    homes = [home(0, computing=True), home(1, computing=True), home(2), home(3)]
    assert lend(homes, cores(4), before={0: (3,), 1: (2,)}) == {0: (3,), 1: (2,)}


def test_the_home_of_a_spare_that_computes_is_not_lent_though_its_owner_is_idle() -> None:
    homes = [home(0), home(1, computing=True), home(2, 0, computing=True)]
    assert lend(homes, cores(2)) == {1: (), 2: ()}


def test_a_worker_whose_core_is_unknown_gets_none() -> None:
    assert lend([home(0, 9, computing=True)], cores(2)) == {0: ()}


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[Home], list[Core], int | None]:
    count = draw(st.integers(1, 12))
    box = [
        Core(
            cpu,
            llc=draw(st.integers(0, 1)),
            node=draw(st.integers(0, 1)),
            efficiency=draw(st.booleans()),
            open=draw(st.booleans()),
        )
        for cpu in range(count)
    ]
    homes = []
    for worker in range(draw(st.integers(0, count))):
        computing = draw(st.booleans())
        idle = not computing and draw(st.booleans())
        homes.append(Home(worker, (worker,), computing, idle))
    return homes, box, draw(st.none() | st.integers(0, count))


@given(boxes())
def test_whatever_the_box(given_box: tuple[list[Home], list[Core], int | None]) -> None:
    homes, box, limit = given_box
    found = lend(homes, box, limit=limit)
    assert set(found) == {h.worker for h in homes if h.computing}
    given_out = [cpu for cpus in found.values() for cpu in cpus]
    assert len(given_out) == len(set(given_out)), "a core has one user"
    closed = {core.cpu for core in box if not core.open}
    needed = {cpu for h in homes if not h.idle for cpu in h.cpus}
    assert not set(given_out) & (closed | needed)
    by_cpu = {core.cpu: core for core in box}
    for worker, cpus in found.items():
        own = by_cpu[worker]
        assert all(by_cpu[c].node == own.node for c in cpus)
        assert all(by_cpu[c].efficiency == own.efficiency for c in cpus)
    if limit is not None and given_out:
        assert len(given_out) + len(found) <= limit
    assert lend(homes, box, limit=limit, before=found) == found, "what was decided stays"


@st.composite
def shared_boxes(draw: st.DrawFn) -> tuple[list[Home], list[Core], int | None]:
    """Workers of several models, at home wherever chance has it."""
    count = draw(st.integers(1, 6))
    box = [Core(cpu, llc=cpu // 2, open=draw(st.booleans())) for cpu in range(count)]
    homes = []
    for worker in range(draw(st.integers(1, 9))):
        cpus = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=2))
        computing = draw(st.booleans())
        idle = not computing and draw(st.booleans())
        homes.append(Home(worker, tuple(sorted(cpus)), computing, idle))
    return homes, box, draw(st.none() | st.integers(0, 6))


@given(shared_boxes())
def test_a_core_is_lent_once_and_never_while_anybody_at_home_there_computes(
    made: tuple[list[Home], list[Core], int | None],
) -> None:
    homes, box, limit = made
    found = lend(homes, box, limit=limit)
    assert found.keys() == {home.worker for home in homes if home.computing}
    lent = [cpu for cpus in found.values() for cpu in cpus]
    assert len(lent) == len(set(lent))
    kept = {cpu for home in homes if not home.idle for cpu in home.cpus}
    assert kept.isdisjoint(lent)
    assert {core.cpu for core in box if core.open}.issuperset(lent)
    if limit is not None and lent:
        busy = {cpu for home in homes if home.computing for cpu in home.cpus}
        assert len(busy) + len(lent) <= limit
