"""What the supervisor remembers of one worker. Data only; pool.py changes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lbhost.board import IdentityRow, Wanted, WorkerState
from lbhost.machine import cpulist
from lbhost.placement.placement import Placement
from lbhost.supervisor.budget import Restarts
from lbhost.supervisor.control_link import ControlLink
from lbhost.supervisor.liveness import Watch


@dataclass(eq=False)
class Worker:
    """One worker id and the process that is it at the moment."""

    id: int
    placement: Placement
    slots: int
    n_ctx: int
    state: WorkerState = WorkerState.STOPPED
    wanted: Wanted = Wanted.UP
    epoch: int = 0
    pid: int | None = None
    link: ControlLink | None = None
    forked: bool = False
    """Whether a process for this epoch has been asked for; False: waits for the fork server."""
    ready_ns: int = 0
    """CLOCK_MONOTONIC when the process became READY, 0 before."""
    restarts: int = 0
    health_kills: int = 0
    last_exit: str = ""
    complaint: str | None = None
    """What its process said before it ended."""
    crashes: Restarts = field(default_factory=Restarts)
    retry: asyncio.TimerHandle | None = None
    retry_at_s: float | None = None
    watch: Watch | None = None
    since_s: float = 0.0
    """CLOCK_MONOTONIC when it came into its state."""
    deadline_s: float | None = None
    """Until when it may stay in its state."""
    retiring: bool = False
    """Scaled down, or a spare that is no longer needed: its row goes when it has stopped."""
    spare: bool = False
    """Made for a rolling restart only."""

    def identity(self) -> IdentityRow:
        """Its row on the board."""
        return IdentityRow(
            present=True,
            epoch=self.epoch,
            state=self.state,
            wanted=self.wanted,
            pid=self.pid or 0,
            gpu=-1 if self.placement.gpu is None else self.placement.gpu,
            cpus=cpulist.render(self.placement.cpus),
            slots=self.slots,
            n_ctx=self.n_ctx,
            started_ns=self.ready_ns,
            restarts=self.restarts,
            health_kills=self.health_kills,
            last_exit=self.last_exit,
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.id}"
