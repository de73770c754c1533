"""The gateway's side of KV states: a worker's link played by hand, real descriptors."""

from __future__ import annotations

import fcntl
import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lbhost import state_file, state_link, wire
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from lbhost.state_file import Header
from lbhost.state_link import Saved, State, Taken, Unable
from lbhost.wire import pack_tokens
from running_gateway import until

pytestmark = pytest.mark.anyio

PROMPT = list(range(200))


class Speeds:
    """A worker that computes 100 tokens/s."""

    def speeds(self) -> tuple[float, float, float]:
        return 100.0, 0.01, 0.01


class Worker:
    """Its ends of the links."""

    def __init__(self, plane: Plane, epoch: int = 1) -> None:
        self.plane = plane
        self.link = WorkerLink(0, epoch, lambda link, step: None, lambda link: None)
        self.socket, theirs = state_link_pair()
        plane.join(self.link, theirs.detach())

    def send(self, message: state_link.FromWorker, fd: int | None = None) -> None:
        assert state_link.send(self.socket, message, fd)
        if fd is not None:
            os.close(fd)

    def save(self, tokens: list[int], scope: int = 0, payload: int = 100) -> None:
        self.send(Saved(0.1, 5.0), made(tokens, scope, payload))

    def got(self) -> tuple[State, int]:
        packet = state_link.receive_in_worker(self.socket)
        assert packet is not None
        return packet


def state_link_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def made(tokens: list[int], scope: int = 0, payload: int = 100) -> int:
    """A state as a worker makes it, but for what llama.cpp would say."""
    header = Header(bytes(32), scope, pack_tokens(tokens), payload, 0)
    fd = os.memfd_create("state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, header.size)
    os.pwrite(fd, state_file.pack(header), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, state_file.SEALS)
    return fd


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def job(prompt: list[int], scope: int = 0) -> Job:
    work = Work(pack_tokens(prompt), len(prompt), 10, wire.Sampling(), scope=scope)
    return Job(1, work, 0.0)


@asynccontextmanager
async def running(wanted: int | None = 1 << 30, **more: Any) -> AsyncIterator[tuple[Plane, Worker]]:
    plane = Plane(Purse(wanted), Speeds(), **more)
    worker = Worker(plane)
    try:
        yield plane, worker
    finally:
        plane.close()
        worker.socket.close()


async def test_what_a_worker_saved_goes_with_a_request_that_begins_alike() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        new = job([*PROMPT[:150], 7, 7, 7])
        plane.look(new)
        assert new.match is not None
        assert new.match.tokens == 150
        assert 140 <= new.stored < 150
        assert plane.attach(worker.link, 42, new, own=0)
        state, fd = worker.got()
        assert state.number == 42
        assert state_file.read(fd).tokens == pack_tokens(PROMPT)
        os.close(fd)
        worker.send(Taken(42, 150, 4196, 0.01))
        await until(lambda: plane.counts.hits == 1, "the worker has said so")
        assert plane.counts.tokens == 150


async def test_a_state_was_of_use_when_a_worker_says_so() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        (entry,) = plane.last_used_first()
        for number, spared in ((1, 0), (2, 150)):
            new = job([*PROMPT[:150], 7, 7, 7])
            plane.look(new)
            assert plane.attach(worker.link, number, new, own=0)
            os.close(worker.got()[1])
            assert entry.uses == 0
            worker.send(Taken(number, spared, 1000, 0.01))
        await until(lambda: plane.counts.hits == 1, "the worker has said so")
        assert entry.uses == 1


async def test_nothing_is_sent_that_the_worker_has_or_that_does_not_pay() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        new = job(PROMPT)
        plane.look(new)
        assert not plane.attach(worker.link, 1, new, own=192)
        other = job([9, *PROMPT])
        plane.look(other)
        assert other.match is None
        assert not plane.attach(worker.link, 2, other, own=0)
        assert plane.counts.misses == 1


async def test_a_short_prompts_state_goes_with_it_too() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT[:40])
        await until(lambda: plane.entries == 1, "the state has come")
        new = job(PROMPT[:32])
        plane.look(new)
        assert plane.attach(worker.link, 1, new, own=0)
        fewer = job(PROMPT[:15])
        plane.look(fewer)
        assert not plane.attach(worker.link, 2, fewer, own=0), "that is computed as soon"


async def test_a_state_whose_copying_takes_longer_than_computing_is_left() -> None:
    async with running(1 << 40) as (plane, worker):
        worker.save(PROMPT, payload=10 << 30)  # 10 s at the speed assumed, 2 s to compute
        await until(lambda: plane.entries == 1, "the state has come")
        new = job(PROMPT)
        plane.look(new)
        assert new.match is not None
        assert new.stored == 0
        assert not plane.attach(worker.link, 1, new, own=0)


async def test_scopes_share_nothing() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT, scope=1)
        await until(lambda: plane.entries == 1, "the state has come")
        for scope, found in ((0, False), (1, True), (2, False)):
            new = job(PROMPT, scope)
            plane.look(new)
            assert (new.match is not None) is found


async def test_a_job_sees_a_state_that_came_after_it() -> None:
    async with running() as (plane, worker):
        new = job(PROMPT)
        plane.look(new)
        assert new.match is None
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        plane.look(new)
        assert new.match is not None


async def test_the_budget_holds_and_descriptors_are_closed() -> None:
    size = os.fstat(probe := made([1] * 100)).st_size
    os.close(probe)
    async with running(3 * size) as (plane, worker):
        before = descriptors()
        for first in range(10):
            worker.save([first] * 100)
        await until(lambda: plane.counts.saved == 10, "all have come")
        assert (plane.entries, plane.bytes, plane.counts.evicted) == (3, 3 * size, 7)
        assert descriptors() == before + 3
        plane.purse.settle(available=0.0, total=1e12)
        assert (plane.entries, plane.bytes) == (0, 0)
        assert descriptors() == before


async def test_no_more_states_than_descriptors() -> None:
    async with running(most_entries=2) as (plane, worker):
        for first in range(5):
            worker.save([first] * 100)
        await until(lambda: plane.counts.saved == 5, "all have come")
        assert plane.entries == 2


async def test_what_is_no_state_is_counted_and_dropped() -> None:
    async with running() as (plane, worker):
        worker.send(Saved(0.1, 5.0), os.open("/dev/null", os.O_RDONLY))
        await until(lambda: plane.counts.failed == 1, "it has come")
        assert plane.entries == 0


async def test_a_state_that_was_refused_is_not_sent_again() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        new = job(PROMPT)
        plane.look(new)
        assert plane.attach(worker.link, 1, new, own=0)
        os.close(worker.got()[1])
        worker.send(Taken(1, 0, 0, 0.0, "a damaged state"))
        await until(lambda: plane.entries == 0, "it is given up")
        assert plane.counts.failed == 1


def die(plane: Plane, number: int) -> None:
    """A worker ends while it is to load the state of PROMPT."""
    dying = Worker(plane, epoch=number)
    new = job(PROMPT)
    plane.look(new)
    assert plane.attach(dying.link, number, new, own=0)
    dying.socket.close()
    plane.leave(dying.link)


async def test_whatever_a_worker_says_of_its_loads_states_are_found() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        plane.read(worker.link)
        wanted = job(PROMPT)
        for seconds, count in ((math.inf, 0), (0.0, -(1 << 60)), (math.nan, 1 << 60)):
            for _ in range(4000):
                worker.send(Taken(1, 1, count, seconds))
                plane.read(worker.link)
            wanted.match_version = -1
            plane.look(wanted)
            assert wanted.match is not None


async def test_a_state_under_which_two_workers_crashed_is_given_up() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        for number in (2, 3):
            die(plane, number)
            plane.ended(0, number, by_its_work=True)
        new = job(PROMPT)
        plane.look(new)
        assert not plane.attach(worker.link, 1, new, own=0)
        assert plane.entries == 0


@pytest.mark.parametrize("word_first", [False, True])
async def test_workers_that_are_killed_cost_no_state(word_first: bool) -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        for number in range(2, 12):
            if word_first:
                dying = Worker(plane, epoch=number)
                new = job(PROMPT)
                plane.look(new)
                assert plane.attach(dying.link, number, new, own=0)
                plane.ended(0, number, by_its_work=False)
                dying.socket.close()
                plane.leave(dying.link)
            else:
                die(plane, number)
                plane.ended(0, number, by_its_work=False)
        assert plane.entries == 1
        new = job(PROMPT)
        plane.look(new)
        assert plane.attach(worker.link, 1, new, own=0)


async def test_a_state_whose_request_has_ended_before_it_was_looked_at_is_not_to_blame() -> None:
    async with running() as (plane, first):
        first.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        for number in range(1, 4):
            worker = Worker(plane)
            new = job([*PROMPT[:150], 7, 7])
            plane.look(new)
            assert plane.attach(worker.link, number, new, own=0)
            plane.released(worker.link, number)
            assert plane._sent[worker.link] == {}
            plane.leave(worker.link)
            plane.released(worker.link, number)
            worker.socket.close()
        assert plane.entries == 1


async def test_a_worker_that_says_its_states_cannot_be_moved_is_believed() -> None:
    async with running() as (plane, worker):
        worker.send(Unable("it has windows"))
        await until(lambda: plane.unable == "it has windows", "it has said so")
        worker.save(PROMPT)
        await until(lambda: plane.unable is None, "one that can is believed more")


async def test_a_full_link_costs_the_state_and_nothing_else() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        await until(lambda: plane.entries == 1, "the state has come")
        new = job(PROMPT)
        plane.look(new)
        sent = 0
        while plane.attach(worker.link, sent + 1, new, own=0):
            sent += 1
            assert sent < 100_000
        assert sent > 0


async def test_garbage_ends_the_link_only() -> None:
    async with running() as (plane, worker):
        worker.save(PROMPT)
        worker.socket.send(b"\xc1garbage")
        new = job(PROMPT)

        def refused() -> bool:
            plane.look(new)
            return new.match is not None and not plane.attach(worker.link, 1, new, 0)

        await until(refused, "the state has come, and no link is left to send it")
        assert plane.entries == 1


async def test_without_a_budget_the_worker_is_told_not_to_save() -> None:
    async with running(0) as (_, worker):
        with pytest.raises(ConnectionError):
            state_link.send(worker.socket, Saved(0.1, 5.0))


async def test_auto_settles_on_a_part_of_what_is_free() -> None:
    async with running(None) as (plane, _):
        plane.purse.settle(available=4e9, total=8e9)
        assert plane.purse.budget == 1e9
        plane.purse.settle(available=1e9, total=8e9)
        assert plane.limit == pytest.approx(2e8)
