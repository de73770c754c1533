"""Reads what liveness.py judges: a worker's progress on the board, its CPU time, its work.

Only reads; pool.py acts on the verdict.
"""

from __future__ import annotations

from lbhost.board import Board, WorkerState
from lbhost.linux import cpu_s, waited_s
from lbhost.supervisor import liveness
from lbhost.supervisor.liveness import Verdict
from lbhost.supervisor.worker import Worker

STARTING = liveness.quiet_budget(30.0, 600.0)
"""Making a context takes 30 ms to seconds; loading a model into a GPU takes minutes."""


def look(board: Board, worker: Worker, now_s: float, *, gateway_fresh: bool) -> Verdict:
    """Judge a worker that has a process, and remember the look in its record.

    Args:
        gateway_fresh: whether the gateway's rows on the board can be believed.
    """
    used = None if worker.pid is None else cpu_s(worker.pid)
    if worker.pid is None or used is None:
        return Verdict.FINE  # it is ending; its pidfd will say so
    row = board.progress.read(worker.id)
    if row is None or row.epoch != worker.epoch:
        seen, busy, predicted = (0, 0), False, 0.0
    else:
        seen, predicted = (row.steps, row.heartbeat_ns), row.predicted_step_s
        busy = bool(row.slots_busy or row.waiting or row.prefill_pending)
    if gateway_fresh and not busy:
        traffic = board.traffic.read(worker.id)
        busy = traffic is not None and traffic.epoch == worker.epoch and traffic.in_flight > 0
    if worker.state is WorkerState.STARTING:
        busy, budget = True, STARTING
    else:
        budget = liveness.step_budget(predicted)
    before = worker.watch
    stalled = busy and before is not None and before.look.progress == seen
    waited = waited_s(worker.pid) if stalled else None
    found = liveness.Look(now_s, busy, seen, used, waited)
    worker.watch, verdict = liveness.judge(before, found, budget)
    return verdict
