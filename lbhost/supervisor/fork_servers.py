"""The fork servers: one for each NUMA node that has CPU workers, so that weights are near.

Owns these services by node, and judges whether one still forks. Decides nothing about workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lbhost.status import ForkServerStatus
from lbhost.supervisor import liveness
from lbhost.supervisor.service import Service

FORK_LIMIT_S = 5.0
"""A fork server answers each fork, through the child, in 10 ms. So long without any answer, and
without CPU use, is a hung one, however many forks are queued."""
FORK_LIMIT_CPU_S = 60.0
STARTING_QUIET_S = 60.0
"""One that starts may read a model from a slow disk meanwhile."""


class ForkServers:
    """Fork servers by node; None is the only node of a box without NUMA."""

    def __init__(self, make: Callable[[int | None], Service]) -> None:
        self._make = make
        self._services: dict[int | None, Service] = {}
        self._forks: dict[int | None, int] = {}
        self._stopping = False

    def ensure(self, nodes: Iterable[int | None], homes: Iterable[int | None]) -> None:
        """Have one for each node that needs one; a new one starts at once.

        Args:
            nodes: where workers are to run.
            homes: where workers are at home, those that are down too: a fork server of any other
                node ends, since it holds a copy of the weights for nobody.
        """
        if self._stopping:
            return
        for node in self._services.keys() - set(homes):
            service = self._services[node]
            service.stop()
            service.kill()  # it has nothing to lose, and may be in the middle of loading
            if service.state == "stopped":
                del self._services[node]
        for node in sorted(set(nodes), key=lambda node: -1 if node is None else node):
            if node not in self._services:
                self._services[node] = self._make(node)
                self._services[node].start()
            elif self._services[node].state == "stopped":
                self._services[node].start()

    def of(self, node: int | None) -> Service | None:
        """A node's."""
        return self._services.get(node)

    def nodes(self) -> set[int | None]:
        """Where there is one."""
        return set(self._services)

    def all(self) -> list[Service]:
        """All of them, the first one first."""
        return list(self._services.values())

    def ready(self) -> frozenset[int | None]:
        """Nodes whose fork server can fork now."""
        return frozenset(n for n, service in self._services.items() if service.state == "ready")

    def forked(self, node: int | None) -> None:
        """A child of this node's fork server has spoken: that is its progress."""
        self._forks[node] = self._forks.get(node, 0) + 1

    def look(self, now_s: float, asked: frozenset[int | None], *, looked: bool) -> None:
        """Judge each.

        Args:
            asked: nodes with workers that wait for their fork.
            looked: whether the last look was in time; if not, nobody is judged by this one.
        """
        for node, service in self._services.items():
            if not looked:
                service.forget_looks()
            elif service.state == "starting":
                service.look(now_s, (), liveness.quiet_budget(STARTING_QUIET_S), busy=True)
            elif service.state == "ready":
                budget = liveness.quiet_budget(FORK_LIMIT_S, FORK_LIMIT_CPU_S)
                progress = (self._forks.get(node, 0),)
                service.look(now_s, progress, budget, busy=node in asked)

    def stop(self) -> None:
        """End all of them for good."""
        self._stopping = True
        for service in self._services.values():
            loading = service.state == "starting"
            service.stop()
            if loading:  # it does not listen while it loads, and has nothing to lose
                service.kill()

    def status(self, model: str) -> list[ForkServerStatus]:
        """Each of them, for the admin API; they hold this model."""
        return [
            ForkServerStatus(
                node=node,
                state=service.state,
                pid=service.pid,
                restarts=service.restarts,
                last_exit=service.last_exit,
                model=model,
            )
            for node, service in self._services.items()
        ]
