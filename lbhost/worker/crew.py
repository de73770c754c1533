"""The threads of a worker and the CPUs they run on: its own, and those that it is lent.

llama.cpp computes a step with as many threads as it is told; all but the first are helpers that
the OpenMP runtime keeps. Owns their number and their pinning; which number is fastest is
widths.py's matter, who gets which CPU the gateway's.

The engine's own thread always stays on the worker's CPUs. A helper that is made anew inherits
where the engine's thread may run, so that is widened for the one step that makes helpers.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Protocol


class Threads(Protocol):
    """The calls to the kernel, so that tests can stand in. Thread 0 is the calling one."""

    def all(self) -> list[int]: ...
    def affinity(self, thread: int) -> set[int]: ...
    def pin(self, thread: int, cpus: set[int]) -> None: ...


class KernelThreads:
    """This process' threads. Their list is opened once: a worker opens nothing later on."""

    def __init__(self) -> None:
        self._list = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._list)

    def all(self) -> list[int]:
        """Thread ids, oldest first, without the main one's."""
        main, ids = os.getpid(), sorted(map(int, os.listdir(self._list)))  # noqa: PTH208 - a descriptor
        return [thread for thread in ids if thread != main]

    def affinity(self, thread: int) -> set[int]:
        return os.sched_getaffinity(thread)

    def pin(self, thread: int, cpus: set[int]) -> None:
        os.sched_setaffinity(thread, cpus)


class Crew:
    """See the module.

    Args:
        own: threads that the worker has on its own CPUs; helpers beyond them go to lent ones.
        set_threads: tells llama.cpp how many threads the next decodes take.
    """

    def __init__(
        self, own: int, set_threads: Callable[[int], None], threads: Threads | None = None
    ) -> None:
        self.own = own
        self._set_threads = set_threads
        self._threads = threads or KernelThreads()
        self._lent: tuple[int, ...] = ()
        self._width = own
        self._settled: tuple[int, ...] | None = ()
        """The lent CPUs that the helpers are pinned to, one each; None: they are not yet."""
        self._home: set[int] | None = None
        """Where the engine's thread ran before its mask was widened."""

    @property
    def width(self) -> int:
        """Threads of the next step."""
        return self._width

    @property
    def widest(self) -> int:
        """Threads that the next step may have."""
        return self.own + len(self._lent)

    @property
    def lent(self) -> tuple[int, ...]:
        """The lent CPUs that the next step takes."""
        return self._lent[: self._width - self.own]

    def lend(self, cpus: tuple[int, ...]) -> None:
        """From the next step on these CPUs, one thread each, may be used beside the own ones."""
        self._lent = cpus
        self.use(min(self._width, self.widest))

    def use(self, width: int) -> None:
        """How many threads the next steps have: from `own` to `widest`."""
        if width != self._width:
            self._width = width
            self._set_threads(width)
        if self.lent != self._settled and self.lent:
            self._settled = None

    def before(self) -> None:
        """A step is about to be computed."""
        if self._settled is not None:
            return
        if len(self._threads.all()) >= self._width - 1:
            self._settle()
            return
        with contextlib.suppress(OSError):  # a lent CPU has just gone offline
            home = self._threads.affinity(0)
            self._threads.pin(0, home | set(self.lent))
            self._home = home

    def after(self) -> None:
        """A step was computed."""
        if self._home is not None:
            home, self._home = self._home, None
            with contextlib.suppress(OSError):  # all of its CPUs went: the supervisor moves it
                self._threads.pin(0, home)
        if self._settled is None:
            self._settle()

    def _settle(self) -> None:
        """Pin the newest helpers to the lent CPUs, one each."""
        helpers = self._threads.all()[self.own - 1 :]
        try:
            for helper, cpu in zip(helpers, self.lent, strict=False):
                self._threads.pin(helper, {cpu})
        except OSError:
            # A CPU that went offline, or a cpuset that shrank: the gateway will see it too.
            self.lend(())
        self._settled = self.lent
