"""Which fork server is taken for hung: one that answers none of the forks that it was asked for."""

from __future__ import annotations

from lbhost.supervisor import liveness
from lbhost.supervisor.fork_servers import FORK_LIMIT_S, ForkServers
from lbhost.supervisor.liveness import Budget, Look, Verdict, Watch
from lbhost.supervisor.service import Service


class Judged(Service):
    """A ready service that only notes what is thought of it; its process uses no CPU."""

    def __init__(self) -> None:
        self.state = "ready"
        self.verdicts: list[Verdict] = []
        self._seen: Watch | None = None

    def start(self) -> None:
        """It is there."""

    def look(self, now_s: float, progress: tuple[int, ...], budget: Budget, *, busy: bool) -> None:
        look = Look(now_s, busy, progress, cpu_s=0.0, waited_s=0.0)
        self._seen, verdict = liveness.judge(self._seen, look, budget)
        self.verdicts.append(verdict)


def made() -> tuple[ForkServers, Judged]:
    service = Judged()
    servers = ForkServers(lambda _node: service)
    servers.ensure([None], [None])
    return servers, service


def test_many_forks_in_line_do_not_make_one_that_forks_look_hung() -> None:
    servers, service = made()
    for second in range(10 * round(FORK_LIMIT_S)):
        servers.look(second, frozenset({None}), looked=True)
        if second % 3 == 0:
            servers.forked(None)
    assert set(service.verdicts) == {Verdict.FINE}


def test_one_that_answers_no_fork_is_hung_and_one_that_is_asked_for_none_is_not() -> None:
    servers, service = made()
    for second in range(10 * round(FORK_LIMIT_S)):
        servers.look(second, frozenset(), looked=True)
    assert set(service.verdicts) == {Verdict.FINE}
    for second in range(100, 103 + round(FORK_LIMIT_S)):
        servers.look(second, frozenset({None}), looked=True)
    assert service.verdicts[-1] is Verdict.HUNG
