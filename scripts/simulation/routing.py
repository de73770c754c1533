"""The ways to choose a worker that are compared. All but the oracle see what lbhost's router sees.

`cost`, `least-connections`, `round-robin`, `random-two` and `idle-cpu` are lbhost's own lines,
over its queue: a request waits in the gateway until a worker has room. Besides:

- `prequal`: Prequal's hot/cold rule (Wydrowski et al., NSDI 2024) over the same queue. Of 16
  workers asked, those with more requests in flight than the quantile HOT of them are hot; of the
  cold ones the one with the least latency is taken (the median of what was seen there at such a
  number in flight), of hot ones the one with the fewest. The answers are fresh, which its own
  probes are not.
- `oracle`: see oracle.py.
- `proxy`: what stands before other servers: fewest connections, settled when a request comes;
  the worker takes prompts as they come (planning.AsTheyCome).
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from lbhost.choices import Policy
from lbhost.config import Settings
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Session, Sessions
from lbhost.gateway.scheduling.worker_view import WorkerView

OWN = tuple(Policy)
PREQUAL = "prequal"
ORACLE = "oracle"
PROXY = "proxy"

NAMES: tuple[str, ...] = (*OWN, PREQUAL, PROXY, ORACLE)

PROBES = 16
HOT = 0.84
"""Quantile of requests in flight, as Prequal has it in production."""

KEPT = 16
"""Latencies remembered of each worker and number in flight."""

Usable = Sequence[tuple[Session, WorkerReading]]
Views = Sequence[WorkerView]
Choose = Callable[[Job, Usable, Views], int | None]


class OtherRouter(Router):
    """lbhost's router but for the choice."""

    def __init__(
        self, settings: Settings, sessions: Sessions, rng: random.Random, choose: Choose
    ) -> None:
        super().__init__(settings, sessions, rng)
        self._choose = choose

    def choose(self, job: Job, usable: Usable, views: Views) -> int | None:
        return self._choose(job, usable, views)


class Prequal:
    """The hot/cold rule. `served` tells it what requests took."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seen: defaultdict[tuple[int, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=KEPT)
        )
        self._placed: dict[int, tuple[int, int, float]] = {}

    def choose(self, job: Job, usable: Usable, views: Views) -> int | None:
        free = [i for i, view in enumerate(views) if view.in_flight < view.slots]
        if not free:
            return None
        asked = self._rng.sample(free, min(PROBES, len(free)))
        self._rng.shuffle(asked)
        flights = sorted(views[i].in_flight for i in asked)
        limit = flights[min(len(flights) - 1, int(HOT * len(flights)))]
        cold = [i for i in asked if views[i].in_flight < limit]
        if cold:
            chosen = min(cold, key=lambda i: self._latency(views[i]))
        else:
            chosen = min(asked, key=lambda i: views[i].in_flight)
        view = views[chosen]
        self._placed[job.number] = (view.worker, view.in_flight, job.arrived)
        return chosen

    def served(self, job: Job, now: float) -> None:
        """A request has ended."""
        placed = self._placed.pop(job.number, None)
        if placed is not None:
            worker, in_flight, arrived = placed
            self._seen[worker, in_flight].append(now - arrived)

    def _latency(self, view: WorkerView) -> float:
        """What was seen at this number in flight, or the next lower one that is known; 0: none."""
        for in_flight in range(view.in_flight, -1, -1):
            seen = self._seen.get((view.worker, in_flight))
            if seen:
                return statistics.median(seen)
        return 0.0
