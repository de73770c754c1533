"""What one worker is. Data only; pool.py changes it. What is wanted of it lies in desired.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbhost.board import IdentityRow, Wanted, WorkerState
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.budget import Restarts
from lbhost.supervisor.control_link import ControlLink
from lbhost.supervisor.desired import WorkerWanted
from lbhost.supervisor.liveness import Watch
from lbhost.supervisor.output import Output
from lbhost.supervisor.reconcile import Seen


@dataclass(eq=False)
class Worker:
    """One worker id and the process that is it at the moment."""

    id: int
    place: Placement
    """Where its process runs, or ran last."""
    slots: int
    n_ctx: int
    model: int = 0
    """The number of its model."""
    of: str = ""
    """Its model's name, where there are several."""
    state: WorkerState = WorkerState.STOPPED
    epoch: int = 0
    pid: int | None = None
    link: ControlLink | None = None
    asked: bool = False
    """Whether a process of this epoch has been asked for; False: waits for the fork server."""
    gateway: int | None = None
    """The pid of the gateway that has its data link."""
    drain: int = 0
    """Counts its drains."""
    drained: bool = False
    ready_ns: int = 0
    """CLOCK_MONOTONIC when the process became READY, 0 before."""
    restarts: int = 0
    health_kills: int = 0
    last_exit: str = ""
    complaint: str | None = None
    """What its process said before it ended."""
    inherited_bytes: int = 0
    """Memory that its process shared with the fork server from the start."""
    own_bytes: int | None = None
    """What it has taken since, as last looked at."""
    memory_restarts: int = 0
    """How often it was replaced for having taken more than it may."""
    found_hung: bool = False
    """Whether we have killed it for want of progress."""
    stopped: bool = False
    """Whether somebody had stopped it then."""
    crashes: Restarts = field(default_factory=Restarts)
    retry_at_s: float | None = None
    watch: Watch | None = None
    since_s: float = 0.0
    """CLOCK_MONOTONIC when it came into its state."""
    output: Output = field(init=False)
    """What its processes have written."""

    def __post_init__(self) -> None:
        self.output = Output(self.id)

    def seen(self, gateway: int | None) -> Seen:
        """For the reconciler.

        Args:
            gateway: the pid of the present gateway.
        """
        return Seen(
            state=self.state,
            epoch=self.epoch,
            place=self.place,
            asked=self.asked,
            running=self.pid is not None,
            linked=gateway is not None and self.gateway == gateway,
            drained=self.drained,
            since_s=self.since_s,
            retry_at_s=self.retry_at_s,
        )

    def cpus(self, want: WorkerWanted) -> tuple[int, ...]:
        """Where it runs, or would; none where this box has no core for it now."""
        if self.state in lifecycle.ALIVE:
            return self.place.cpus
        return () if want.home is None else want.home.cpus

    def identity(self, want: WorkerWanted) -> IdentityRow:
        """Its row on the board."""
        return IdentityRow(
            present=True,
            epoch=self.epoch,
            state=self.state,
            wanted=wanted(want),
            pid=self.pid or 0,
            gpu=-1 if self.place.gpu is None else self.place.gpu,
            cpus=self.cpus(want),
            slots=self.slots,
            n_ctx=self.n_ctx,
            started_ns=self.ready_ns,
            restarts=self.restarts,
            health_kills=self.health_kills,
            memory_restarts=self.memory_restarts,
            last_exit=self.last_exit,
            model=self.model,
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.id} ({self.of})" if self.of else f"worker {self.id}"


def wanted(want: WorkerWanted) -> Wanted:
    """What the board and status show: what the operator asked for."""
    return Wanted.UP if want.up and not want.leaving else Wanted.DOWN
