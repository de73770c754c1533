"""What is settled before the first process starts: the model, the cores, the context.

Reads the model's header and the box; starts nothing. Every way in which this can go wrong is
a StartupError or UsageError of one line.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lbhost import inspection, llama, log, model
from lbhost.board import Board
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.folders import private
from lbhost.machine import gpu, topology
from lbhost.machine.gpu import GpuInfo, Gpus
from lbhost.machine.gpu_watch import GpuWatch
from lbhost.machine.hostload import available_bytes
from lbhost.machine.sampler import Sampler
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.placement import memory
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan
from lbhost.supervisor.launcher import environment, with_huge_pages
from lbhost.tuning import first_start, identity, remembered
from lbhost.tuning.remembered import Start, open_shape, widened
from lbhost.tuning.shapes import candidates
from lbhost.tuning.trial import Load
from lbhost.weights import FilePart, identify, parts, unchanged

LEAST_CAPACITY = 64
SPARE_FACTOR = 4
"""The board has room for so many times the workers that are started."""


EMBEDDING_SLOTS = 16
"""Requests, or parts of them, that an embedding worker has at once: they cost no KV cache, and what
it has it computes together."""


class Prepared(msgspec.Struct, frozen=True):
    """The outcome. The board, sampler and GPU reader are open and the caller's."""

    settings: Settings
    model: model.ModelFile
    info: llama.ModelInfo
    topology: Topology
    gpus: Sequence[GpuInfo]
    """Those that workers may use."""
    gpu_capable: bool
    placements: Sequence[Placement]
    n_ctx: int
    """Tokens per slot."""
    board: Board
    sampler: Sampler
    gpu_reader: Gpus
    reread: Callable[[], Topology]
    """What the box allows now; `topology` is what it allowed at the start."""
    weights: tuple[FilePart, ...] = ()
    """The model's files; whatever is loaded later must be these."""

    @property
    def worker_bytes(self) -> int:
        """Memory that one more CPU worker takes."""
        shape = {"kv_bytes_per_token": self.info.kv_bytes_per_token, "n_ctx": self.n_ctx}
        slots = self.info.purpose.sequences(self.settings.slots)
        return memory.need_bytes(weights_bytes=0, workers=1, slots=slots, **shape)


def prepare(
    settings: Settings, environ: Mapping[str, str], inherited: tuple[str, int] | None = None
) -> Prepared:
    """Find the model, look at the box, and decide what will run.

    Args:
        inherited: a model's path and the tokens per slot that another server has it run with: as
            many here, though that one's memory is not free yet.

    Raises:
        StartupError, UsageError
    """
    if settings.models:
        raise UsageError("several models at once: not yet in this version; use --model for one")
    if settings.state_dir is not None:
        folder = private(Path(settings.state_dir).expanduser(), "--state-dir")
        settings = msgspec.structs.replace(settings, state_dir=str(folder))
    file = model.resolve(settings.model, settings.alias)
    files = identify(parts(Path(file.path)))
    roots = Roots.from_environ(environ)
    reader = GpuWatch(roots)
    if not reader.answered:
        log.get().warning("NVIDIA's driver does not answer: its cards are left out")
    box = topology.discover(roots)
    capable = llama.supports_gpu()
    gpus = gpu.visible(reader.gpus, environ)
    on_cpus = not (capable and gpus)
    if on_cpus:
        start = _as_tuned(Start(file, files, settings), environ, box, roots)
        file, files, settings = start.file, start.files, start.settings
    with unchanged(files):
        info = inspection.inspect(file.path, settings.kind, settings.pooling)
    if not info.purpose.generates:
        settings = msgspec.structs.replace(settings, slots=max(settings.slots, EMBEDDING_SLOTS))
    elif on_cpus:
        settings = _shaped(settings, environ, box, roots, info, files)
    if settings.ctx_size is None and inherited is not None and inherited[0] == file.path:
        settings = msgspec.structs.replace(settings, ctx_size=inherited[1])
    placements = plan(box, settings.workers, settings.threads, gpus, capable)
    raise_file_limit(settings.max_connections)
    capacity = max(LEAST_CAPACITY, SPARE_FACTOR * len(placements))
    board = Board.create(workers=capacity, cores=box.rows, gpus=len(reader.gpus))
    sampler = Sampler(board, box, roots, reader)
    sampler.sample()
    return Prepared(
        settings=settings,
        model=file,
        info=info,
        topology=box,
        gpus=gpus,
        gpu_capable=capable,
        placements=placements,
        n_ctx=_context(settings, info, placements, board),
        board=board,
        sampler=sampler,
        gpu_reader=reader,
        reread=topology.Reread(roots),
        weights=files,
    )


def _as_tuned(start: Start, environ: Mapping[str, str], box: Topology, roots: Roots) -> Start:
    """What `lbhost tune` has made of it, said in the log."""
    found = remembered.as_tuned(start, environ, box, roots)
    if found.tuned:
        log.get().info(
            "using what `lbhost tune` chose (--no-tuned does not, `lbhost tune --forget` removes "
            "it)",
            **found.tuned,
        )
    return found


def _shaped(
    settings: Settings,
    environ: Mapping[str, str],
    box: Topology,
    roots: Roots,
    info: llama.ModelInfo,
    files: tuple[FilePart, ...],
) -> Settings:
    """The settings with the measured width of workers, where they leave it open."""
    if not (open_shape(settings) and settings.probe):
        return settings
    found = candidates(box, settings.slots)
    subject = first_start.Subject(
        identity=identity.of(files, box, roots, settings.slots),
        load=Load(info.path, files, found[0].placements[0].node),
        weights_bytes=info.weights_bytes,
        kv_bytes_per_token=info.kv_bytes_per_token,
        available_bytes=available_bytes(roots),
    )
    child = with_huge_pages(environment(environ))
    return widened(settings, first_start.shape(subject, found, environ, child).threads)


def _context(
    settings: Settings, info: llama.ModelInfo, placements: Sequence[Placement], board: Board
) -> int:
    host = board.host.read(0)
    free = None if host is None else host.memory_available
    rows = [board.gpus.read(i) for i in range(len(board.gpus))]
    shared = memory.budget(placements, None if free is None else int(free), rows)
    n_ctx = memory.fit_context(
        available_bytes=shared.available_bytes,
        weights_bytes=info.weights_bytes * shared.copies,
        kv_bytes_per_token=info.kv_bytes_per_token,
        workers=shared.workers,
        slots=info.purpose.sequences(settings.slots),
        n_ctx_train=info.n_ctx_train,
        requested=info.purpose.context(settings.ctx_size, info.n_ctx_train),
    )
    if any(placement.gpu is None for placement in placements):
        limit = settings.memory_limit_bytes
        memory.require_within(
            limit, info.kv_bytes_per_token, info.purpose.sequences(settings.slots), n_ctx
        )
    return n_ctx


def raise_file_limit(connections: int) -> None:
    """As many descriptors as the hard limit allows: a connection is one, in the gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(65536, 2 * connections)
    wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
