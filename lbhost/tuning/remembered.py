"""What earlier measurements change in what `serve` starts. Reads the cache, measures nothing."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lbhost.choices import FlashAttention
from lbhost.config import Settings
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.model import ModelFile
from lbhost.placement.gain import WidthGain
from lbhost.tuning import identity, shelf, tuned
from lbhost.tuning.shapes import gains_of, slots_of
from lbhost.weights import FilePart, identify


class Start(msgspec.Struct, frozen=True):
    """What is served, and how."""

    file: ModelFile
    files: tuple[FilePart, ...]
    settings: Settings
    tuned: dict[str, str] = {}
    """What `lbhost tune` has decided of it, for a person; empty if nothing."""


def open_shape(settings: Settings) -> bool:
    """Whether the settings leave open how many threads a worker has."""
    return settings.workers == "auto" and settings.threads_per_worker is None


def widened(settings: Settings, threads: int) -> Settings:
    """The settings with workers so wide."""
    slots = slots_of(settings.slots, threads)
    return msgspec.structs.replace(settings, threads_per_worker=threads, slots=slots)


def as_tuned(start: Start, environ: Mapping[str, str], box: Topology, roots: Roots) -> Start:
    """The same with what `lbhost tune` chose for this kind of model, if the settings leave it open.

    Raises:
        ModelFileError: the rewritten file has just gone.
    """
    file, files, settings = start.file, start.files, start.settings
    if not settings.tuned:
        return start
    choice = tuned.find(environ, identity.of(files, box, roots, tuned.ANY_SLOTS))
    if choice is None or not choice.suits(settings.kind):
        return start
    decided = {"weights": choice.file.format if choice.file else "as they are"}
    if open_shape(settings):
        settings = widened(settings, choice.shape.threads)
        decided["threads_per_worker"] = str(choice.shape.threads)
    if choice.flash_attention is not None and settings.flash_attention is FlashAttention.AUTO:
        flash = FlashAttention.ON if choice.flash_attention else FlashAttention.OFF
        settings = msgspec.structs.replace(settings, flash_attention=flash)
        decided["flash_attention"] = flash.value
    if choice.file is not None:
        path = tuned.path(environ, choice.file)
        file = msgspec.structs.replace(file, path=str(path))
        files = identify([path])
    return Start(file, files, settings, decided)


def gains(
    environ: Mapping[str, str], measured: identity.Identity, threads: int
) -> tuple[WidthGain, ...]:
    """What the first start has measured of workers that are wider than so many threads."""
    found = shelf.shape(environ, measured)
    return () if found is None else gains_of(found.speeds, threads)


def as_measured(start: Start, environ: Mapping[str, str], box: Topology, roots: Roots) -> Start:
    """The same with the shape that the first start measured, if one has."""
    settings = start.settings
    if not (open_shape(settings) and settings.probe):
        return start
    found = shelf.shape(environ, identity.of(start.files, box, roots, settings.slots))
    if found is None:
        return start
    return msgspec.structs.replace(start, settings=widened(settings, found.shape.threads))
