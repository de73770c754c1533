"""The processes of a running lbhost, as the sampler wants them: what they use is not another
program's. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from lbhost.machine.sampler import Watched
from lbhost.status import Status


def processes(running: Status | None) -> list[Watched]:
    """All of them, as of now: workers on their cores, every other one on the CPU that it is on.

    Empty where none runs, or its processes are not to be seen from here (another container's).
    """
    if running is None:
        return []
    cores = {w.pid: tuple(w.cores) for w in running.workers if w.pid is not None}
    return [
        Watched(number, process.pid, cpus)
        for number, process in enumerate(_tree(running.pid))
        if (cpus := cores.get(process.pid) or _cpu(process))
    ]


def _tree(pid: int) -> Iterator[psutil.Process]:
    try:
        server = psutil.Process(pid)
        yield server
        yield from server.children(recursive=True)
    except psutil.Error:
        return


def _cpu(process: psutil.Process) -> tuple[int, ...]:
    try:
        return (process.cpu_num(),)
    except psutil.Error:
        return ()
