"""What is wanted: the one structure that operators and the box's changes write.

Data only, and never what is: a pool's worker records hold that. reconcile.py compares the two,
and pool.py does what follows. Everything that can be wanted of a worker is written here and
nowhere else, so that a change which cannot happen now happens as soon as it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lbhost.config import Settings
from lbhost.model import ModelFile
from lbhost.placement.placement import Placement
from lbhost.setting_values import names


class WorkerWanted(msgspec.Struct, frozen=True):
    """What is wanted of one worker id."""

    home: Placement | None
    """Where it runs; None while this box has no core for it: it is not run then."""
    up: bool = True
    """What the operator asked for: up or down."""
    epoch: int = 0
    """The generation wanted: a process of an earlier epoch is replaced, after its requests."""
    down_by_s: float | None = None
    """CLOCK_MONOTONIC until which its requests may run when it is taken down; None: as long
    as any request may take."""
    leaving: bool = False
    """Scaled down, or a spare that is no longer needed: forgotten once it has stopped."""
    spare: bool = False
    """Stands in during a rolling restart; counts for nothing else, and owns no core."""

    @property
    def runs(self) -> bool:
        """Whether a process is wanted."""
        return self.up and not self.leaving and self.home is not None


class Rolling(msgspec.Struct, frozen=True):
    """A rolling restart that is wanted."""

    targets: dict[int, int]
    """By worker id: the epoch that it has to reach."""
    spare: int | None
    """The spare's id; None where none can be made."""


@dataclass
class ModelWanted:
    """What is wanted of one model: a pool of workers."""

    file: ModelFile
    n_ctx: int
    """Tokens per slot."""
    slots: int
    settings: Settings = field(default_factory=Settings)
    """Those that its workers' next processes get, and by which they are watched."""
    number: int = 0
    """Its place among the server's models."""
    several: bool = False
    """Whether it is one of several, so that a worker's name says whose it is."""
    weight: float = 1.0
    """Its part of the cores where models share them."""
    workers: dict[int, WorkerWanted] = field(default_factory=dict)
    rolling: Rolling | None = None
    asleep: bool = False
    """It has no workers until a request comes."""
    pinned: bool = False
    """An operator has said how many workers it has: the autoscaler lets it be."""

    @property
    def autoscaled(self) -> bool:
        """Whether the load says how many workers it has."""
        return self.settings.autoscaled and not self.pinned

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.file.alias

    @property
    def aliases(self) -> tuple[str, ...]:
        """What else they may call it."""
        return names(self.settings.aliases)

    def members(self) -> dict[int, WorkerWanted]:
        """The workers that count: no spare, and none that is leaving."""
        return {i: w for i, w in sorted(self.workers.items()) if not w.spare and not w.leaving}

    def change(self, worker: int, **changes: object) -> None:
        """Want something else of a worker."""
        self.workers[worker] = msgspec.structs.replace(self.workers[worker], **changes)


@dataclass
class Desired:
    """What is wanted of the whole server."""

    models: dict[str, ModelWanted] = field(default_factory=dict)
    """By name, in the order of their numbers."""
    settings: Settings = field(default_factory=Settings)
    """Those of the server as a whole: its gateway's, and what the supervisor does by them."""

    def adopt(self, settings: Settings, keys: Sequence[str]) -> None:
        """Want other values of these settings; a model that has a value of its own keeps it.

        A process has those that it was made with; the gateway is told.
        """
        self.settings = settings
        for model, own in zip(self.models.values(), settings.served(), strict=True):
            fresh = {key: getattr(own, key) for key in keys}
            model.settings = msgspec.structs.replace(model.settings, **fresh)
