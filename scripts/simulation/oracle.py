"""A router that knows everything but the future: true lengths, true speeds, every worker's work.

For each worker with room it works out, exactly but for noise and chunking, when the new request
would have its first and its last token there, and how much later it would make those of all
requests that are there already; shorter prompts go first. It takes the worker where all these
seconds together are the fewest. Greedy, so no bound, but no router that has to guess does better
by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbhost.gateway.scheduling.job import Job
from lbhost.worker.batch import TILE
from simulation.requests import Request, named
from simulation.routing import Usable, Views
from simulation.worker import VirtualWorker

FIRST_WEIGHT = 4.0
"""What a second until a first token counts beside one until the last."""


class Oracle:
    """Knows the virtual workers."""

    def __init__(self, workers: Sequence[VirtualWorker], requests: Sequence[Request]) -> None:
        self._workers = workers
        self._requests = requests

    def choose(self, job: Job, usable: Usable, views: Views) -> int | None:
        request = self._requests[named(job.work.prompt)]
        best: tuple[float, int] | None = None
        for i, (session, _) in enumerate(usable):
            if views[i].in_flight < views[i].slots:
                cost = added_s(self._workers[session.worker], request)
                if best is None or cost < best[0]:
                    best = cost, i
        return None if best is None else best[1]


def added_s(worker: VirtualWorker, request: Request) -> float:
    """Weighted seconds that all requests together take longer with this one on that worker."""
    there = [(s.prefill_left, s.output_left) for s in (*worker.seats, *worker.waiting)]
    without = _total_s(worker, there)
    return _total_s(worker, [*there, (request.prompt_tokens, request.output_tokens)]) - without


def _total_s(worker: VirtualWorker, work: Sequence[tuple[int, int]]) -> float:
    """Weighted seconds until each has its first and its last token.

    Args:
        work: prompt and output tokens left of each.
    """
    costs = worker.costs
    prefills = sorted(one for one in work if one[0])
    outputs = [output for prompt, output in work if not prompt]
    at = total = 0.0
    for prompt, output in prefills:
        riding = costs.step_s(len(outputs))
        steps = prompt // TILE + 1
        at += costs.prefill_s(prompt) + steps * riding
        # Those that decode get a token with every chunk meanwhile.
        outputs = [max(0, left - steps) for left in outputs]
        total += sum(at for left in outputs if not left)
        outputs = [left for left in outputs if left]
        total += FIRST_WEIGHT * at
        outputs.append(max(1, output - 1))
    outputs.sort()
    done = 0
    for i, output in enumerate(outputs):
        at += (output - done) * costs.step_s(len(outputs) - i)
        done = output
        total += at
    return total / worker.core.left(worker.now)
