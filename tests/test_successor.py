"""A server that stands for the newest one, as far as it needs no processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from lbhost.supervisor.children import Children
from lbhost.supervisor.succession import Next, Serving
from lbhost.supervisor.successor import Successor


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
