"""Which core is whose, while the box changes under us: cpuset, affinity, quota, hotplug.

Owns the present topology, and writes the homes in desired.py. Moves nothing itself: the
reconciler does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from lbhost.errors import InvalidRequestError, UsageError
from lbhost.machine import cpulist
from lbhost.machine.gpu import GpuInfo
from lbhost.machine.topology import Topology
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan, spread
from lbhost.supervisor.cores import allot
from lbhost.supervisor.desired import ModelWanted

REREAD_S = 3.0
"""How often the limits are read again."""


class Homes:
    """Gives every worker that counts a home, as far as there are cores."""

    def __init__(
        self,
        topology: Topology,
        reread: Callable[[], Topology],
        gpus: Sequence[GpuInfo],
        gpu_capable: bool,
        rows: int,
    ) -> None:
        """
        Args:
            reread: what the box is now.
            rows: of the board's core table; a CPU without a row cannot be used.
        """
        self.topology = topology
        self._reread = reread
        self._gpus = gpus
        self._gpu_capable = gpu_capable
        self._rows = rows

    @property
    def allowed(self) -> tuple[int, ...]:
        """CPUs that this server may use now."""
        return tuple(sorted(self.topology.allowed))

    def look_again(self) -> bool:
        """Read the limits; whether they have changed."""
        found = self._reread()
        usable = frozenset(cpu for cpu in found.allowed if cpu < self._rows)
        found = msgspec.structs.replace(found, allowed=usable or self.topology.allowed)
        changed = found != self.topology
        self.topology = found
        return changed

    def check(self, model: ModelWanted, count: int) -> None:
        """Raises InvalidRequestError if the model cannot have so many workers here, saying why."""
        settings = model.settings
        if count < 1:
            raise InvalidRequestError(
                f"cannot scale to {count} workers: at least 1 is needed (drain takes one down)",
                param="workers",
            )
        most = settings.max_workers
        if count < (settings.min_workers or 1) or (most is not None and count > most):
            within = f"from {settings.min_workers or 1} to {most or 'as many as there are cores'}"
            raise InvalidRequestError(
                f"cannot scale to {count} workers: min_workers and max_workers allow {within}",
                param="workers",
            )
        try:
            self._plan(count, settings.threads)
        except UsageError as error:
            why = error.message.removeprefix(f"--workers {count} is too many, ")
            message = f"cannot scale to {count} workers: {why}"
            raise InvalidRequestError(message, param="workers") from error

    def assign(self, model: ModelWanted, others: Iterable[ModelWanted] = ()) -> None:
        """Write a home for every worker that counts, or None where there is no room.

        Args:
            others: the other models: cores are shared, but not while there are others.
        """
        members = model.members()
        # With fewer cores than one worker has threads, one worker has fewer threads.
        threads = max(1, min(model.settings.threads, self.topology.effective_cores))
        taken = [want.home for one in others for want in one.members().values() if want.home]
        room = spread(self._plan("auto", threads), taken)
        homes = allot(members, {i: want.home for i, want in members.items()}, room)
        for i, home in homes.items():
            if model.workers[i].home != home:
                model.change(i, home=home)

    def describe(self) -> str:
        """What this server may use, for a person."""
        quota = self.topology.quota_cpus
        limit = "" if quota is None else f", of which the quota allows {quota:g}"
        return f"CPUs {cpulist.render(self.allowed)}{limit}"

    def _plan(self, count: int | str, threads: int) -> list[Placement]:
        return plan(self.topology, count, threads, self._gpus, self._gpu_capable)
