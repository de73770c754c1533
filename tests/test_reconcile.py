"""The reconciler's decision, alone and over random lives of a pool."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost.board import Wanted, WorkerState
from lbhost.model import ModelFile
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle, rolling
from lbhost.supervisor import reconcile as decide
from lbhost.supervisor.cores import allot, ledger
from lbhost.supervisor.desired import ModelWanted, Rolling, WorkerWanted
from lbhost.supervisor.lifecycle import Event

S = WorkerState
CORES = [Placement((cpu,), 1) for cpu in range(6)]


class World:
    """A pool without processes: actions change states at once, the rest is the test's to do."""

    def __init__(self, workers: int) -> None:
        self.desired = ModelWanted(ModelFile("/nowhere", "m"), 512, 4)
        self.seen: dict[int, decide.Seen] = {}
        self.cores = list(CORES)
        self.now = 100.0
        self.fork_server = self.gateway = True
        self.rolled: list[rolling.Over] = []
        for i in range(workers):
            self.add(i, WorkerWanted(CORES[i]))

    def add(self, worker: int, want: WorkerWanted) -> None:
        self.desired.workers[worker] = want
        self.seen[worker] = decide.Seen(S.STOPPED, 0, want.home or CORES[0])

    def actual(self) -> decide.Actual:
        allowed = tuple(core.cpus[0] for core in self.cores)
        nodes: frozenset[int | None] = frozenset({None}) if self.fork_server else frozenset()
        return decide.Actual(self.seen, nodes, self.gateway, allowed, 60.0)

    def settle(self) -> None:
        for _ in range(200):
            actions = decide.reconcile(self.desired, self.actual(), self.now)
            if not actions:
                return
            for action in actions:
                self.do(action)
            self.check()
        raise AssertionError("it does not come to rest")

    def do(self, action: decide.Action) -> None:
        if isinstance(action, decide.RollingOver):
            plan, self.desired.rolling = self.desired.rolling, None
            assert plan is not None
            self.rolled.append(action.how)
            for i in plan.targets:
                if i in self.seen:
                    epoch = min(self.desired.workers[i].epoch, self.seen[i].epoch)
                    self.desired.change(i, epoch=epoch)
            if plan.spare in self.seen:
                self.desired.change(plan.spare, leaving=True)
            return
        i = action.worker
        match action:
            case decide.Start(_, place):
                self.set(i, Event.START, epoch=self.seen[i].epoch + 1, place=place)
            case decide.Launch(_, place):
                self.put(i, asked=True, running=True, place=place)
            case decide.Drain():
                states = {i: (seen.state, seen.epoch) for i, seen in self.seen.items()}
                if i == rolling.step(self.desired, states).turn:
                    self.check_capacity(i)
                self.set(i, Event.DRAIN, drained=False)
            case decide.Withdraw():
                self.set(i, Event.WITHDRAW)
            case decide.Stop():
                self.set(i, Event.STOP)
                if self.seen[i].state is S.STOPPING and not self.seen[i].asked:
                    self.set(i, Event.ENDED)
            case decide.Kill():
                self.end(i)
            case decide.Repin(_, place):
                self.put(i, place=place)
            case decide.Connect():
                self.put(i, linked=True)
            case decide.Forget():
                del self.seen[i], self.desired.workers[i]

    def check_capacity(self, leaves: int) -> None:
        """Who is restarted leaves at most one of those that are wanted missing."""
        wanted = [i for i, want in self.desired.members().items() if want.runs]
        up = [i for i, seen in self.seen.items() if seen.state in lifecycle.UP and i != leaves]
        assert len(up) >= len(wanted) - 1

    def check(self) -> None:
        homes = {i: want.home for i, want in self.desired.members().items()}
        places = {i: s.place for i, s in self.seen.items() if s.state in lifecycle.ALIVE}
        ledger([homes], places)  # raises where a core has two owners

    def put(self, worker: int, **changes: object) -> None:
        self.seen[worker] = msgspec.structs.replace(self.seen[worker], **changes)

    def set(self, worker: int, event: Event, **changes: object) -> None:
        state = lifecycle.apply(self.seen[worker].state, event)
        self.put(worker, state=state, since_s=self.now, **changes)

    def end(self, worker: int, *, budget_left: bool = True) -> None:
        seen, want = self.seen[worker], self.desired.workers[worker]
        up = Wanted.UP if want.runs else Wanted.DOWN
        event = lifecycle.on_exit(seen.state, up, budget_left=budget_left)
        retry = self.now + 0.1 if event is Event.CRASHED else None
        gone = {"asked": False, "running": False, "linked": False, "retry_at_s": retry}
        self.set(worker, event, **gone)

    def advance(self) -> bool:
        """One well-behaved step of every process; whether there was any."""
        moved = False
        for i, seen in list(self.seen.items()):
            if seen.state is S.STARTING and seen.asked:
                self.set(i, Event.READY)
            elif seen.state is S.DRAINING and not seen.drained:
                self.put(i, drained=True)
            elif seen.state is S.STOPPING and seen.asked:
                self.end(i)
            elif seen.state is not S.BACKOFF:
                continue
            moved = True
        self.now += 1.0
        return moved

    def roll(self) -> None:
        members = {i: want for i, want in self.desired.members().items() if want.runs}
        if self.desired.rolling is not None or not members:
            return
        spare = max(self.seen) + 1
        targets = {i: self.seen[i].epoch + 1 for i in members}
        for i, target in targets.items():
            self.desired.change(i, epoch=target)
        self.add(spare, WorkerWanted(next(iter(members.values())).home, spare=True))
        self.desired.rolling = Rolling(targets, spare)

    def allow(self, cores: int) -> None:
        self.cores = CORES[6 - cores :]
        members = self.desired.members()
        homes = allot(members, {i: w.home for i, w in members.items()}, self.cores)
        for i, home in homes.items():
            self.desired.change(i, home=home)

    def run(self) -> None:
        """Until nothing moves any more."""
        for _ in range(500):
            self.settle()
            if not self.advance():
                self.settle()
                return
        raise AssertionError("it never comes to rest")

    def converged(self) -> bool:
        for i, want in self.desired.workers.items():
            seen = self.seen[i]
            if want.runs:
                right = seen.state in {*lifecycle.UP, S.FAILED} and seen.epoch >= want.epoch
                right = right and (seen.place == want.home or seen.state is S.FAILED)
            else:
                right = seen.state in {S.STOPPED, S.FAILED} and not want.leaving
            if not right:
                return False
        return self.desired.rolling is None and not any(
            want.spare for want in self.desired.workers.values()
        )


EVENTS = st.sampled_from(
    [
        *("crash", "give up", "drain", "resume", "restart", "roll", "allow", "add", "remove"),
        *("fork server", "gateway", "advance", "hot"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(EVENTS, st.integers(0, 5)), max_size=30))
def test_whatever_happens_it_comes_to_what_is_wanted(
    workers: int, events: list[tuple[str, int]]
) -> None:
    world = World(workers)
    world.run()
    assert world.converged()
    for what, n in events:
        happen(world, what, n)
        world.settle()
    world.fork_server = world.gateway = True
    world.run()
    assert world.converged()


def happen(world: World, what: str, n: int) -> None:
    ids = sorted(world.seen)
    worker = ids[n % len(ids)]
    seen, want = world.seen[worker], world.desired.workers[worker]
    if what in {"crash", "give up"} and seen.asked:
        world.end(worker, budget_left=what == "crash")
    elif what == "drain":
        world.desired.change(worker, up=False)
    elif what == "resume" and not want.leaving:
        again = seen.state in {S.STOPPED, S.BACKOFF, S.FAILED}
        world.desired.change(worker, up=True, epoch=seen.epoch + again)
    elif what == "restart" and world.desired.rolling is None and not want.leaving:
        world.desired.change(worker, up=True, epoch=seen.epoch + 1)
    elif what == "roll":
        world.roll()
    elif what == "allow":
        world.allow(n + 1)
    elif what == "add" and world.desired.rolling is None and len(world.desired.members()) < 6:
        world.add(max(ids) + 1, WorkerWanted(None))
        world.allow(len(world.cores))
    elif what == "remove" and world.desired.rolling is None and len(world.desired.members()) > 1:
        world.desired.change(max(world.desired.members()), leaving=True)
    elif what == "fork server":
        world.fork_server = not world.fork_server
    elif what == "gateway":
        world.gateway = not world.gateway
        for i in ids:
            world.put(i, linked=False)
    elif what == "advance":
        world.advance()
    elif what == "hot" and seen.state is S.READY:
        world.set(worker, Event.HOT)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5))
def test_a_rolling_restart_keeps_all_that_are_wanted_ready(workers: int) -> None:
    world = World(workers)
    world.run()
    world.roll()
    for _ in range(200):
        world.settle()
        assert sum(seen.state in lifecycle.UP for seen in world.seen.values()) >= workers
        if not world.advance():
            break
    assert world.rolled == [rolling.Over(workers)]
    assert [seen.epoch for seen in world.seen.values()] == [2] * workers
    assert world.converged()


def test_the_spare_stands_on_the_core_of_whoever_is_restarted() -> None:
    world = World(3)
    world.run()
    world.roll()
    stood = set()
    for _ in range(200):
        world.settle()
        for i, seen in world.seen.items():
            if i < 3 and seen.state in {S.DRAINING, S.STOPPING}:
                assert world.seen[3].place.cpus == CORES[i].cpus
                stood.add(i)
        if not world.advance():
            break
    assert stood == {0, 1, 2}


def test_a_rolling_restart_stops_at_a_failed_worker_and_the_spare_goes() -> None:
    world = World(3)
    world.run()
    world.roll()
    while world.seen[0].epoch < 2 or not world.seen[0].asked:
        world.settle()
        world.advance()
        world.settle()
    world.end(0, budget_left=False)
    world.run()
    assert world.rolled == [rolling.Over(0, "worker 0 does not start", 0)]
    assert [(i, seen.epoch) for i, seen in world.seen.items()] == [(0, 2), (1, 1), (2, 1)]


def test_workers_without_a_core_drain_and_come_back_with_it() -> None:
    world = World(4)
    world.run()
    world.allow(4)  # 2 to 5 are left: 0 and 1 find new homes
    world.run()
    assert [seen.epoch for seen in world.seen.values()] == [1] * 4, "moved, not restarted"
    assert {seen.place.cpus[0] for seen in world.seen.values()} == {2, 3, 4, 5}
    world.allow(1)
    world.settle()
    states = [seen.state for seen in world.seen.values()]
    assert sorted(states) == [S.READY, S.DRAINING, S.DRAINING, S.DRAINING]
    assert all(seen.place.cpus == (5,) for seen in world.seen.values())
    world.run()
    assert sum(seen.state is S.STOPPED for seen in world.seen.values()) == 3
    world.allow(6)
    world.run()
    assert all(seen.state is S.READY for seen in world.seen.values())
