"""What is settled before the first process starts: the box, and what it serves.

Looks at the box and at each model (model_startup.py); starts no child that stays. Every way in
which this can go wrong is a StartupError or UsageError of one line.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lbhost import llama, log
from lbhost.board import Board
from lbhost.config import Settings
from lbhost.folders import private
from lbhost.machine import gpu, topology
from lbhost.machine.gpu import GpuInfo, Gpus
from lbhost.machine.gpu_watch import GpuWatch
from lbhost.machine.sampler import Sampler
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.supervisor import model_startup
from lbhost.supervisor.desired import Desired, ModelWanted
from lbhost.supervisor.model_startup import Found, PreparedModel
from lbhost.supervisor.succession import Context

LEAST_CAPACITY = 64
SPARE_FACTOR = 4
"""The board has room for so many times the workers that are started."""


class Prepared(msgspec.Struct, frozen=True):
    """The outcome. The board, sampler and GPU reader are open and the caller's."""

    settings: Settings
    """Those of the server as a whole; of one model, with what was measured for it."""
    models: Sequence[PreparedModel]
    """At least one. A model's number is its place here."""
    topology: Topology
    gpus: Sequence[GpuInfo]
    """Those that workers may use."""
    gpu_capable: bool
    board: Board
    sampler: Sampler
    gpu_reader: Gpus
    reread: Callable[[], Topology]
    """What the box allows now; `topology` is what it allowed at the start."""


def prepare(
    settings: Settings, environ: Mapping[str, str], contexts: Sequence[Context] = ()
) -> Prepared:
    """Find the models, look at the box, and decide what will run.

    Args:
        contexts: how another server has them run: with as many tokens here, though that one's
            memory is not free yet.

    Raises:
        StartupError, UsageError
    """
    if settings.state_dir is not None:
        folder = private(Path(settings.state_dir).expanduser(), "--state-dir")
        settings = msgspec.structs.replace(settings, state_dir=str(folder))
    roots = Roots.from_environ(environ)
    reader = GpuWatch(roots)
    if not reader.answered:
        log.get().warning("NVIDIA's driver does not answer: its cards are left out")
    box = topology.discover(roots)
    capable, gpus = llama.supports_gpu(), gpu.visible(reader.gpus, environ)
    found = model_startup.find(settings, Found(environ, roots, box, gpus, capable), contexts)
    raise_file_limit(settings.max_connections)
    workers = sum(len(made.placements) for made in found)
    capacity = max(LEAST_CAPACITY, SPARE_FACTOR * workers)
    board = Board.create(workers=capacity, cores=box.rows, gpus=len(reader.gpus))
    sampler = Sampler(board, box, roots, reader)
    sampler.sample()
    models = model_startup.with_contexts(found, board)
    return Prepared(
        settings=settings if settings.models else models[0].settings,
        models=models,
        topology=box,
        gpus=gpus,
        gpu_capable=capable,
        board=board,
        sampler=sampler,
        gpu_reader=reader,
        reread=topology.Reread(roots),
    )


def wanted(prepared: Prepared) -> Desired:
    """What is wanted of a server that starts: no worker yet."""
    models = {
        made.name: ModelWanted(
            made.file,
            made.n_ctx,
            made.settings.slots,
            made.settings,
            number,
            several=len(prepared.models) > 1,
            weight=_weight(prepared.settings, number),
            pinned=made.pinned,
        )
        for number, made in enumerate(prepared.models)
    }
    return Desired(models, prepared.settings)


def _weight(settings: Settings, number: int) -> float:
    return settings.models[number].weight if settings.models else 1.0


def raise_file_limit(connections: int) -> None:
    """As many descriptors as the hard limit allows: a connection is one, in the gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(65536, 2 * connections)
    wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
