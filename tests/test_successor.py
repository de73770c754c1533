"""A server that stands for the newest one, as far as it needs no processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lbhost import control
from lbhost.placement.placement import Placement
from lbhost.supervisor import handover, succession
from lbhost.supervisor.children import Children
from lbhost.supervisor.handover import Handover, Predecessor
from lbhost.supervisor.succession import Context, Line, Message, Next, Serving, TakeOver
from lbhost.supervisor.successor import Successor

PATIENCE_S = 60.0


class Watched:
    """The children, as a successor needs them."""

    def __init__(self) -> None:
        self.watchers: dict[int, Callable[[str, bool], None]] = {}
        self.gone: set[int] = set()

    def watch(self, pid: int, watcher: Callable[[str, bool], None]) -> bool:
        self.watchers[pid] = watcher
        return pid not in self.gone

    def disown(self, pid: int) -> None:
        assert pid in self.watchers


def second(children: Watched, ends: list[None]) -> Any:
    """The second server serves, as pid 2, and has said that the third has taken over."""
    successor: Any = Successor(cast("Children", children), lambda: ends.append(None))
    successor.pid = 2
    successor._message(Serving(2))
    successor._message(Next(3))
    return successor


@pytest.mark.parametrize("how", [("exit code 0", True), ("SIGKILL", False)])
def test_the_third_server_is_stood_for_however_the_second_has_ended(how: tuple[str, bool]) -> None:
    children, ends = Watched(), list[None]()
    successor = second(children, ends)
    successor._ended(*how)
    assert (successor.pid, ends) == (3, [])
    children.watchers[3]("exit code 0", True)
    assert (successor.pid, successor.well, len(ends)) == (None, True, 1)


def test_a_third_server_that_is_gone_already_is_the_end() -> None:
    children, ends = Watched(), list[None]()
    children.gone.add(3)
    successor = second(children, ends)
    successor._ended("SIGKILL", False)
    assert (successor.pid, successor.well, len(ends)) == (None, False, 1)


@pytest.mark.anyio
async def test_the_first_server_is_told_of_every_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to it goes along: the server before the one that tells has ended long ago."""
    monkeypatch.setattr(handover, "live_without_parent", lambda: None)  # we are no server
    told, lines, servers = list[Message](), list[Line](), list[Predecessor]()
    anchor: socket.socket | None = None
    for pid in (3, 4, 5):
        ours, theirs = control.socketpair()
        lines.append(Line(ours, told.append))
        servers.append(Predecessor(theirs, lambda _: None, lambda: None, anchor))
        lines[-1].send(TakeOver(os.getpid()))
        async with asyncio.timeout(PATIENCE_S):
            while not servers[-1].taken:
                await asyncio.sleep(0)
        (fd,) = servers[-1].line_to_anchor()
        anchor = socket.socket(fileno=os.dup(fd))
        servers[-1].followed_by(pid)
        servers[-1].close()
        for line in lines[1:]:
            line.close()
    async with asyncio.timeout(PATIENCE_S):
        while len(told) < 3:
            await asyncio.sleep(0)
    assert told == [Next(3), Next(4), Next(5)]
    assert anchor is not None
    anchor.close()
    lines[0].close()


@pytest.mark.anyio
async def test_without_a_process_that_stays_no_line_leads_there() -> None:
    ours, theirs = control.socketpair()
    with ours:
        server = Predecessor(theirs, lambda _: None, lambda: None)
        assert server.line_to_anchor() == ()
        server.close()


def test_the_message_of_a_release_that_says_nothing_of_its_models_is_understood() -> None:
    ours, theirs = control.socketpair()
    with ours, theirs:
        ours.send(b'{"type":"take_over","anchor":5}')
        assert succession.receive(theirs) == (TakeOver(5), [])


@pytest.mark.anyio
async def test_who_takes_over_hears_what_operators_have_wanted_since_it_began_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "live_without_parent", lambda: None)  # we are no server
    ours, theirs = control.socketpair()
    line, taken = Line(ours, lambda _: None), list[tuple[Context, ...]]()
    server = Predecessor(theirs, taken.append, lambda: None)

    async def hand_over(message: TakeOver) -> None:
        line.send(message)

    last = (Context("m", "/m.gguf", 512, workers=1, down=(Placement((1,), 1),), pinned=True),)
    other: Any = SimpleNamespace(pid=3, hand_over=hand_over)
    silent: Any = SimpleNamespace(
        hand_over=lambda _: None, present=True, hand_on=lambda: None, add=lambda *_: None
    )
    giving = Handover(
        *(silent, silent, silent, "", silent, silent, silent),
        contexts=lambda: last,
        let_go=lambda _: None,
        wake=lambda: None,
    )
    with socket.socket() as states:
        await giving._commit(other, states)
    async with asyncio.timeout(PATIENCE_S):
        while not taken:
            await asyncio.sleep(0)
    assert taken == [last]
    server.close()
    line.close()
