"""What is settled of each model before the first process starts: file, purpose, cores, context.

Reads the model's header and what was measured before; starts nothing but a measurement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from lbhost import adapter_files, inspection, llama, log, model
from lbhost.adapters import AdapterFile, file_bytes
from lbhost.board import Board
from lbhost.config import Settings
from lbhost.errors import (
    LbhostError,
    ModelFileError,
    UsageError,
)
from lbhost.machine.gpu import GpuInfo
from lbhost.machine.hostload import available_bytes
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.placement import memory
from lbhost.placement.gain import WidthGain
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan, spread
from lbhost.purpose import KindChoice, PoolingChoice
from lbhost.supervisor.launcher import environment, with_huge_pages
from lbhost.supervisor.succession import Context
from lbhost.tuning import first_start, identity, remembered
from lbhost.tuning.remembered import Start, open_shape, widened
from lbhost.tuning.shapes import candidates
from lbhost.tuning.trial import Load
from lbhost.weights import FilePart, identify, parts, unchanged

EMBEDDING_SLOTS = 16
"""Requests, or parts of them, that an embedding worker has at once: they cost no KV cache, and what
it has it computes together."""

T = TypeVar("T")


class Found(msgspec.Struct, frozen=True):
    """The box, as models are placed on it."""

    environ: Mapping[str, str]
    roots: Roots
    topology: Topology
    gpus: Sequence[GpuInfo]
    """Those that workers may use."""
    gpu_capable: bool

    @property
    def on_cpus(self) -> bool:
        return not (self.gpu_capable and self.gpus)


class Reading(msgspec.Struct, frozen=True):
    """How a model's file is found, and what it says of itself."""

    resolve: Callable[[str, str | None], model.ModelFile]
    inspect: Callable[[str, KindChoice, PoolingChoice], llama.ModelInfo]
    inspect_adapters: Callable[[str, Sequence[str]], None]
    tells: bool = True
    """Whether the log says what is used: not where nothing will be."""


class PreparedModel(msgspec.Struct, frozen=True):
    """One model of a server."""

    settings: Settings
    """Those in force for it, with what was measured."""
    file: model.ModelFile
    info: llama.ModelInfo
    placements: Sequence[Placement]
    """Of as many workers as it may have."""
    n_ctx: int
    """Tokens per slot."""
    weights: tuple[FilePart, ...] = ()
    """The model's files; whatever is loaded later must be these."""
    adapters: tuple[AdapterFile, ...] = ()
    """Its LoRA adapters; the same goes for them."""
    table: int | None = None
    """The number of its table of `models`; None: there is none."""
    gains: tuple[WidthGain, ...] = ()
    """What was measured of cores beyond a worker's own."""
    before: Context | None = None
    """How it was served by the server from which this one takes over, by the same name."""

    @property
    def workers(self) -> int:
        """How many it has at the start."""
        settings, before = self.settings, self.before
        count = 0 if before is None else (before.workers or before.asleep) + len(before.down)
        if count and settings.autoscaled:
            return min(max(count, settings.least_workers), len(self.placements))
        if isinstance(settings.workers, int):
            return settings.workers
        return max(1, settings.least_workers) if settings.autoscaled else len(self.placements)

    def down(self, homes: Sequence[Placement]) -> frozenset[int]:
        """Which of the workers with these homes do not run at the start: as many as an operator
        has taken down in the server before, on the same cores as far as that goes. One runs where
        one did, however few there are now."""
        before = self.before
        if before is None:
            return frozenset()
        taken_down = before.down
        most = len(homes) - (1 if before.workers or before.asleep else 0)

        def rank(index: int) -> tuple[bool, int]:
            home = homes[index]
            same = any(home.gpu == it.gpu and {*home.cpus} & {*it.cpus} for it in taken_down)
            return not same, -index

        return frozenset(sorted(range(len(homes)), key=rank)[: min(len(taken_down), most)])

    @property
    def pinned(self) -> bool:
        """Whether an operator has said that."""
        return self.settings.autoscaled and self.before is not None and self.before.pinned

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.file.alias

    @property
    def files(self) -> tuple[FilePart, ...]:
        """All that its weights are made from."""
        return (*self.weights, *(adapter.file for adapter in self.adapters))

    @property
    def weights_bytes(self) -> int:
        """Memory that its weights take once they are loaded, adapters included."""
        return self.info.weights_bytes + file_bytes(self.adapters)

    @property
    def sequences(self) -> int:
        """For how many a worker holds the whole context."""
        return self.info.purpose.sequences(self.settings.slots)

    @property
    def worker_bytes(self) -> int:
        """Memory that one more CPU worker takes."""
        return memory.need_bytes(
            weights_bytes=0,
            kv_bytes_per_token=self.info.kv_bytes_per_token,
            workers=1,
            slots=self.sequences,
            n_ctx=self.n_ctx,
        )


def find(
    settings: Settings, box: Found, before: Sequence[Context], reading: Reading | None = None
) -> list[PreparedModel]:
    """Every model that these settings serve; `n_ctx` has yet to be settled.

    Args:
        before: how another server has them run: with as many tokens per slot here.

    Raises:
        StartupError, UsageError: one is not there, not what it is served as, or does not fit.
    """
    found: list[PreparedModel] = []
    reading = reading or Reading(model.resolve, inspection.inspect, inspection.inspect_adapters)
    for i, own in enumerate(settings.served()):
        table = i if settings.models else None
        file = _naming(table, "path", partial(reading.resolve, own.model, own.alias))
        key = "path" if own.kind is KindChoice.AUTO else "kind"
        homes = [home for one in found for home in one.placements[: one.workers]]
        made = _naming(table, key, partial(_one, own, file, box, before, homes, reading))
        found.append(msgspec.structs.replace(made, table=table))
    return found


def _naming(table: int | None, key: str, make: Callable[[], T]) -> T:
    """What is made, or its refusal, with the table it is of and keys instead of flags.

    Args:
        table: its number; None: there are none.
        key: what is to blame if the file is no good.
    """
    try:
        return make()
    except LbhostError as error:
        if table is None:
            raise
        text = re.sub(r"^--([a-z-]+) ", lambda flag: f".{_key(flag[1])}: ", error.message)
        text = re.sub(r"--([a-z-]+)", lambda flag: _key(flag[1]), text)
        if not text.startswith("."):
            text = f".{key}: {text}" if isinstance(error, ModelFileError) else f": {text}"
        error.message = f"models[{table}]{text}"
        raise


def _key(flag: str) -> str:
    return "path" if flag == "model" else flag.replace("-", "_")


def _one(
    settings: Settings,
    file: model.ModelFile,
    box: Found,
    contexts: Sequence[Context],
    others: Sequence[Placement],
    reading: Reading,
) -> PreparedModel:
    """`others`: homes of other models' workers."""
    files = identify(parts(Path(file.path)))
    if box.on_cpus:
        start = _as_tuned(Start(file, files, settings), box, tells=reading.tells)
        file, files, settings = start.file, start.files, start.settings
    with unchanged(files):
        info = reading.inspect(file.path, settings.kind, settings.pooling)
    adapters = adapter_files.find(
        settings.adapters, file, info, reading.resolve, reading.inspect_adapters
    )
    gains: tuple[WidthGain, ...] = ()
    if not info.purpose.generates:
        settings = msgspec.structs.replace(settings, slots=max(settings.slots, EMBEDDING_SLOTS))
    elif box.on_cpus:
        settings, gains = _shaped(settings, box, info, files)
    before = _before(file, contexts)
    if settings.ctx_size is None and before is not None:
        settings = msgspec.structs.replace(settings, ctx_size=before.n_ctx)
    memory.require_trained(settings.ctx_size, info.n_ctx_train)
    placed = _placed(settings, box, others)
    if before is not None and before.name != file.alias:
        before = None
    return PreparedModel(
        settings, file, info, placed, 0, files, adapters, gains=gains, before=before
    )


def _before(file: model.ModelFile, contexts: Sequence[Context]) -> Context | None:
    """How this file has been served; by this name, if by several."""
    same = [context for context in contexts if context.path == file.path]
    same.sort(key=lambda context: context.name != file.alias)
    return same[0] if same else None


def _placed(settings: Settings, box: Found, others: Sequence[Placement]) -> list[Placement]:
    """Every model is placed over the whole box: cores go to whoever has requests."""
    threads, gpus = settings.threads, (box.gpus, box.gpu_capable)
    most = len(plan(box.topology, settings.workers, threads, *gpus))
    room = plan(box.topology, "auto", threads, *gpus)
    if settings.max_workers is not None:
        most = min(settings.max_workers, len(room))
    placed = spread(room, others)[:most]
    if len(placed) < (settings.min_workers or 0):
        raise UsageError(
            f"--min-workers {settings.min_workers} is too many, at most {len(placed)} fit here"
        )
    return placed


def _as_tuned(start: Start, box: Found, *, tells: bool) -> Start:
    """What `lbhost tune` has made of it, said in the log if it `tells`."""
    found = remembered.as_tuned(start, box.environ, box.topology, box.roots)
    if found.tuned and tells:
        log.get().info(
            "using what `lbhost tune` chose (--no-tuned does not, `lbhost tune --forget` removes "
            "it)",
            **found.tuned,
        )
    return found


def _shaped(
    settings: Settings, box: Found, info: llama.ModelInfo, files: tuple[FilePart, ...]
) -> tuple[Settings, tuple[WidthGain, ...]]:
    """The settings with the measured width of workers, where they leave it open, and what was
    measured of wider ones."""
    if not (open_shape(settings) and settings.probe):
        return settings, ()
    found = candidates(box.topology, settings.slots)
    subject = first_start.Subject(
        identity=identity.of(files, box.topology, box.roots, settings.slots),
        load=Load(info.path, files, found[0].placements[0].node),
        weights_bytes=info.weights_bytes,
        kv_bytes_per_token=info.kv_bytes_per_token,
        available_bytes=available_bytes(box.roots),
    )
    child = with_huge_pages(environment(box.environ))
    threads = first_start.shape(subject, found, box.environ, child).threads
    gains = remembered.gains(box.environ, subject.identity, threads)
    return widened(settings, threads), gains


# --- memory -------------------------------------------------------------------------------


def with_contexts(models: Sequence[PreparedModel], board: Board) -> list[PreparedModel]:
    """The models with the tokens per slot that memory leaves to all of them together, for as many
    workers as each may have: how many were there `before`, and were pinned, changes nothing.

    Raises:
        StartupError: it does not hold them.
    """
    host = board.host.read(0)
    free = None if host is None else host.memory_available
    rows = [board.gpus.read(i) for i in range(len(board.gpus))]
    shared = [
        memory.budget(m.placements, None if free is None else int(free), rows) for m in models
    ]
    held = [_held(made, budget) for made, budget in zip(models, shared, strict=True)]
    if len(models) == 1:
        (one,), (budget,) = held, shared
        contexts = [
            memory.fit_context(
                available_bytes=budget.available_bytes,
                weights_bytes=one.weights_bytes,
                kv_bytes_per_token=one.kv_bytes_per_token,
                workers=one.workers,
                slots=one.slots,
                n_ctx_train=one.n_ctx_train,
                requested=one.requested,
            )
        ]
    else:
        known = [one.available_bytes for one in shared if one.available_bytes is not None]
        contexts = memory.fit_contexts(min(known, default=None), held)
    found = [_at(made, n_ctx) for made, n_ctx in zip(models, contexts, strict=True)]
    require_within(found, [made.settings.memory_limit_bytes for made in found])
    return found


def require_within(models: Sequence[PreparedModel], limits: Sequence[int | None]) -> None:
    """Raises StartupError if a model's workers would be over their limit from their start."""
    for made, limit in zip(models, limits, strict=True):
        _naming(made.table, "path", partial(_require_within, made, limit))


def _held(made: PreparedModel, shared: memory.Budget) -> memory.Held:
    info = made.info
    return memory.Held(
        name=made.name,
        weights_bytes=made.weights_bytes * shared.copies,
        kv_bytes_per_token=info.kv_bytes_per_token,
        workers=shared.workers,
        slots=made.sequences,
        n_ctx_train=info.n_ctx_train,
        requested=info.purpose.context(made.settings.ctx_size, info.n_ctx_train),
    )


def _at(made: PreparedModel, n_ctx: int) -> PreparedModel:
    return msgspec.structs.replace(made, n_ctx=n_ctx)


def _require_within(made: PreparedModel, limit: int | None) -> None:
    if any(placement.gpu is None for placement in made.placements):
        memory.require_within(limit, made.info.kv_bytes_per_token, made.sequences, made.n_ctx)
