"""KV states from one gateway to the next: two planes and a line, real descriptors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from lbhost import state_link
from lbhost.gateway.states.heritage import Bequest, Legacy
from lbhost.gateway.states.plane import Plane
from lbhost.state_link import Able, Unable
from running_gateway import until
from test_state_plane import Worker, descriptors, job, made, running, state_link_pair

pytestmark = pytest.mark.anyio

IDENTITY = bytes(32)
"""What `made` writes."""
OTHER = b"o" * 32


class Both(NamedTuple):
    """An old gateway with two states, and a new one."""

    old: Plane
    old_worker: Worker
    new: Plane
    new_worker: Worker


@asynccontextmanager
async def both() -> AsyncIterator[Both]:
    async with running() as (old, old_worker), running() as (new, new_worker):
        old_worker.save(list(range(100)))
        old_worker.save(list(range(500, 700)), scope=7)
        await until(lambda: old.entries == 2, "the old gateway has two states")
        yield Both(old, old_worker, new, new_worker)


@asynccontextmanager
async def line(these: Both) -> AsyncIterator[tuple[Bequest, Legacy]]:
    ours, theirs = state_link_pair()
    bequest, legacy = Bequest(ours.detach(), [these.old]), Legacy(theirs.detach(), [these.new])
    try:
        yield bequest, legacy
    finally:
        bequest.close()
        await until(lambda: not legacy.open, "the new gateway has seen the end")


async def test_what_was_computed_goes_along_with_its_scope_and_what_comes_later_too() -> None:
    async with both() as these:
        these.new_worker.send(Able(IDENTITY))
        async with line(these) as (bequest, legacy):
            await bequest.given()
            await until(lambda: these.new.entries == 2, "both have come")
            same, other = job(list(range(500, 700)), scope=7), job(list(range(500, 700)))
            for one in (same, other):
                these.new.look(one)
            assert same.match is not None
            assert same.match.tokens == 200
            assert other.match is None
            these.old_worker.save(list(range(900, 1000)))  # by a stream that ends only now
            await until(lambda: these.new.entries == 3, "that comes too")
        assert (legacy.taken, legacy.refused) == (3, 0)
        assert these.old.entries == 3, "the old one goes on as it was"


async def test_nothing_is_taken_before_it_is_known_what_fits_nor_what_does_not() -> None:
    async with both() as these, line(these) as (bequest, legacy):
        await bequest.given()
        assert these.new.entries == 0
        these.new_worker.send(Able(OTHER))
        await until(lambda: legacy.refused == 2, "they are of another model or build")
        assert these.new.entries == 0


async def test_a_model_whose_states_cannot_move_takes_none() -> None:
    async with both() as these, line(these) as (_, legacy):
        these.new_worker.send(Unable("a window"))
        await until(lambda: legacy.refused == 2, "they are refused")


async def test_more_than_the_line_holds_arrive_and_no_descriptor_stays() -> None:
    before = descriptors()
    async with running() as (old, worker), running() as (new, heir):
        for at in range(400):
            worker.save([at, at, at])
            if at % 50 == 49:
                await until(lambda at=at: old.entries == at + 1, "they are in the store")  # type: ignore[misc]
        async with line(Both(old, worker, new, heir)) as (bequest, legacy):
            heir.send(Able(IDENTITY))
            await bequest.given()
            await until(lambda: legacy.taken == 400, "all have come")
        assert new.entries == 400
    assert descriptors() == before


async def test_what_is_no_sealed_state_is_refused_and_the_next_one_taken() -> None:
    async with running() as (new, worker):
        worker.send(Able(IDENTITY))
        ours, theirs = state_link_pair()
        legacy = Legacy(theirs.detach(), [new])
        plain = os.memfd_create("plain")
        for fd in (plain, made([1, 2, 3])):
            assert state_link.send(ours, state_link.Left(-5.0, -1), fd)
            os.close(fd)
        await until(lambda: (legacy.taken, legacy.refused) == (1, 1), "the second is taken")
        ours.send(b"nonsense")
        await until(lambda: not legacy.open, "what cannot be read ends it")
        ours.close()
