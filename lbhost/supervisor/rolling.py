"""A rolling restart: a new process for every worker, one at a time, at full capacity.

A spare worker is started first. It stands in on the core of whichever worker is being
restarted, and goes in the end. GPU workers cannot be moved, and a GPU seldom holds a model
twice: there a spare is made only for a fleet of one.
"""

from __future__ import annotations

from lbhost.board import Wanted
from lbhost.errors import ConflictError
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.worker import Worker


async def restart_all(operations: Operations) -> str:
    """Restart every worker that is wanted up.

    Stops at the first that does not come up, and leaves the spare in its stead.

    Raises:
        ConflictError: another one runs, nothing is wanted up, or a worker did not come up.
    """
    operations.require_alone("start a rolling restart")
    pool = operations.pool
    workers = [pool.workers[i] for i in sorted(pool.workers)]
    workers = [w for w in workers if w.wanted is Wanted.UP and not w.retiring]
    if not workers:
        raise ConflictError("no worker is wanted up: there is nothing to restart")
    operations.rolling = f"0 of {len(workers)} done"
    operations.events.add("info", "rolling", f"rolling restart of {len(workers)} workers")
    try:
        done = await _restart(operations, workers)
    except ConflictError as error:
        message = f"the rolling restart has stopped: {error.message}"
        operations.events.add("error", "rolling", message)
        raise ConflictError(message) from error
    finally:
        operations.rolling = None
    message = f"rolling restart done: {done} workers"
    operations.events.add("info", "rolling", message)
    return message


async def _restart(operations: Operations, workers: list[Worker]) -> int:
    on_gpu = workers[0].placement.gpu is not None
    spare = None
    if not on_gpu or len(workers) == 1:
        operations.rolling = f"starting a spare worker, 0 of {len(workers)} done"
        spare = await _spare(operations, workers[0])
    done = 0
    for worker in workers:
        if worker.retiring or worker.wanted is Wanted.DOWN:
            continue  # the operator has changed their mind about this one
        operations.rolling = f"worker {worker.id}, {done} of {len(workers)} done"
        operations.events.add("info", "rolling", operations.rolling, worker.id)
        if spare is not None and not on_gpu:
            operations.pool.repin(spare, worker.placement.cpus)
        await operations.renew(worker)
        done += 1
    if spare is not None:
        operations.rolling = f"retiring the spare worker, {done} of {len(workers)} done"
        operations.retire(spare)
        await operations.until_retired(spare)
    return done


async def _spare(operations: Operations, first: Worker) -> Worker:
    ids = operations.pool.workers
    spare = operations.new_worker(max(ids) + 1, first.placement)
    spare.spare = True
    operations.pool.add(spare)
    try:
        await operations.until_up(spare)
    except ConflictError:
        operations.retire(spare)
        raise
    return spare
