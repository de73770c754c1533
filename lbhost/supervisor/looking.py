"""Puts together what liveness.py judges: a worker's progress, its CPU time, its work.

Only reads; pool.py acts on the verdict.
"""

from __future__ import annotations

from lbhost.board import ProgressRow, TrafficRow, WorkerState
from lbhost.linux import all_waited_s, cpu_s, runnable
from lbhost.supervisor import liveness
from lbhost.supervisor.liveness import Verdict
from lbhost.supervisor.worker import Worker

STARTING = liveness.quiet_budget(30.0, 600.0)
"""Making a context takes 30 ms to seconds; loading a model into a GPU takes minutes."""


def look(
    worker: Worker, row: ProgressRow | None, traffic: TrafficRow | None, now_s: float
) -> Verdict:
    """Judge a worker that has a process, and remember the look in its record.

    Args:
        row: what this process says of itself; None if nothing yet.
        traffic: what the gateway says of it; None if that cannot be believed.
    """
    used = None if worker.pid is None else cpu_s(worker.pid)
    if worker.pid is None or used is None:
        return Verdict.FINE  # it is ending; its pidfd will say so
    if row is None:
        seen, busy, predicted = (0, 0), False, 0.0
    else:
        seen, predicted = (row.steps, row.heartbeat_ns), row.predicted_step_s
        busy = bool(row.slots_busy or row.waiting or row.prefill_pending)
    if traffic is not None and traffic.epoch == worker.epoch and traffic.in_flight > 0:
        busy = True
    if worker.state is WorkerState.STARTING:
        busy, budget = True, STARTING
    else:
        budget = liveness.step_budget(predicted)
    before = worker.watch
    stalled = busy and before is not None and before.look.progress == seen
    waited = all_waited_s(worker.pid) if stalled else None
    wanting = stalled and runnable(worker.pid)
    found = liveness.Look(now_s, busy, seen, used, waited, wanting)
    worker.watch, verdict = liveness.judge(before, found, budget)
    return verdict
