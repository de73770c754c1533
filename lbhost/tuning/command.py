"""`lbhost tune`: from settings to a kept choice. Prints progress, leaves what to say to others."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from lbhost import inspection, llama, model
from lbhost.config import Settings
from lbhost.errors import TuningError, UsageError
from lbhost.machine import gpu, topology
from lbhost.machine.gpu_watch import GpuWatch
from lbhost.machine.hostload import available_bytes
from lbhost.machine.tree import Roots
from lbhost.purpose import ModelKind
from lbhost.tuning import formats, identity, tuned
from lbhost.tuning.shapes import candidates
from lbhost.tuning.tuned import Tuned
from lbhost.tuning.tuner import Plan, Tell, Tuner
from lbhost.weights import identify, parts, unchanged

MOST_TURNED = 0.001
"""1 - cosine that vectors may lose: twice what a batch's other texts make of it anyway."""


def of_table(settings: Settings, name: str | None) -> Settings:
    """Those of the table of `models` that is called so, or has this path; each is tuned by itself.

    Raises:
        UsageError: there is none, or which of several is meant was not said.
    """
    served = settings.served()
    for entry, own in zip(settings.models, served, strict=True):
        if name in (*entry.names, entry.path) or (name is None and len(served) == 1):
            return own
    names = ", ".join(entry.name for entry in settings.models)
    said = "" if name is None else f", not {name!r}"
    raise UsageError(f"[[models]] names the models: tune one of {names}{said}")


def plan(settings: Settings, environ: Mapping[str, str], max_kl: float) -> Plan:
    """What is to be tried for the model and box that `serve` would have.

    Raises:
        StartupError, UsageError: as `serve` would.
        TuningError: `serve` would run on GPUs, or the model ranks.
    """
    path = Path(model.resolve(settings.model).path)
    files = identify(parts(path))
    with unchanged(files):
        info = inspection.inspect(path, settings.kind, settings.pooling)
    if info.purpose.kind is ModelKind.RERANK:
        raise TuningError(f"{path.name} ranks: only models that chat or embed can be tuned")
    generates = info.purpose.generates
    roots = Roots.from_environ(environ)
    box = topology.discover(roots)
    _refuse_gpus(roots, environ)
    shapes = tuple(candidates(box, settings.slots, thorough=True))
    return Plan(
        identity=identity.of(files, box, roots, tuned.ANY_SLOTS),
        path=path,
        parts=files,
        info=info,
        shapes=shapes if generates else shapes[:1],  # `serve` has vectors computed by one thread
        formats=tuple(
            formats.worth_trying(
                info.format_number, info.parameters, info.weights_bytes, generates=generates
            )
        ),
        max_kl=max_kl if generates else min(max_kl, MOST_TURNED),
        available_bytes=available_bytes(roots),
        asked_kind=settings.kind,
    )


def _refuse_gpus(roots: Roots, environ: Mapping[str, str]) -> None:
    reader = GpuWatch(roots)
    try:
        if llama.supports_gpu() and gpu.visible(reader.gpus, environ):
            raise TuningError(
                "serve runs on the GPUs here, and tuning is for CPUs (CUDA_VISIBLE_DEVICES= hides "
                "the GPUs)"
            )
    finally:
        reader.close()


def run(
    asked: Plan, environ: Mapping[str, str], process_environ: Mapping[str, str], tell: Tell
) -> Tuned:
    """Measure, choose and keep. SIGTERM and SIGHUP end it as Ctrl-C does: with nothing left.

    Raises:
        TuningError
        KeyboardInterrupt
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before: list[tuple[signal.Signals, Callable[..., object] | int | None]] = [
        (number, signal.signal(number, signal.default_int_handler)) for number in numbers
    ]
    try:
        return Tuner(asked, environ, process_environ, tell).run()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def forget(settings: Settings, environ: Mapping[str, str]) -> int:
    """Remove what was chosen for the model; how many choices there were.

    Raises:
        StartupError: there is no such model.
        TuningError: a file cannot be removed.
    """
    path = Path(model.resolve(settings.model).path)
    try:
        return tuned.forget(environ, path)
    except OSError as error:
        raise TuningError(f"cannot remove {error.filename}: {error.strerror}") from error
