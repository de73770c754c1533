"""What was measured before changes a start only where the settings leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbhost.choices import FlashAttention
from lbhost.config import Settings
from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.machine.tree import Roots
from lbhost.model import ModelFile
from lbhost.placement.gain import WidthGain
from lbhost.purpose import KindChoice, ModelKind
from lbhost.tuning import identity, remembered, shelf, tuned
from lbhost.tuning.remembered import Start
from lbhost.tuning.shapes import Shape, Speeds
from lbhost.tuning.shelf import MeasuredShape
from lbhost.tuning.tuned import RewrittenFile, Tuned
from lbhost.weights import identify

BOX = Topology(tuple(PhysicalCore((cpu,)) for cpu in range(4)), frozenset(range(4)))
WIDE = Shape(threads=2, workers=2)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    return path


def start(path: Path, settings: Settings) -> Start:
    return Start(ModelFile(str(path), "a"), identify([path]), settings)


def measured(environ: dict[str, str], path: Path, settings: Settings) -> Settings:
    """The settings after WIDE was measured for four slots."""
    case = identity.of(identify([path]), BOX, Roots(), 4)
    record = MeasuredShape(case, WIDE, {str(WIDE): Speeds(1, 1)})
    shelf.write(shelf.shape_path(environ, case), record)
    return remembered.as_measured(start(path, settings), environ, BOX, Roots()).settings


def test_what_was_measured_of_wider_workers_is_remembered_too(
    environ: dict[str, str], path: Path
) -> None:
    case = identity.of(identify([path]), BOX, Roots(), 4)
    assert remembered.gains(environ, case, 1) == ()
    narrow = Shape(threads=1, workers=4)
    speeds = {str(narrow): Speeds(400, 80), str(WIDE): Speeds(360, 70)}
    shelf.write(shelf.shape_path(environ, case), MeasuredShape(case, narrow, speeds))
    assert remembered.gains(environ, case, 1) == (WidthGain(2, 1.8, 1.75),)
    assert remembered.gains(environ, case, 2) == ()


def choose(environ: dict[str, str], path: Path, **more: Any) -> Path:
    """Have a choice with another file; where that is."""
    case = identity.of(identify([path]), BOX, Roots(), tuned.ANY_SLOTS)
    written = path.with_name("written")
    written.write_bytes(b"GGUF better")
    stat = written.stat()
    file = RewrittenFile(f"{case.key}-Q8_0.gguf", "Q8_0", stat.st_size, stat.st_mtime_ns)
    tuned.keep(environ, Tuned(case, str(path), WIDE, file, False, (), **more), written)
    return tuned.path(environ, file)


def as_tuned(environ: dict[str, str], path: Path, settings: Settings) -> Start:
    return remembered.as_tuned(start(path, settings), environ, BOX, Roots())


def test_the_measured_width_comes_with_its_slots(environ: dict[str, str], path: Path) -> None:
    found = measured(environ, path, Settings())
    assert (found.workers, found.threads, found.slots) == ("auto", 2, 8)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(workers=2),
        Settings(threads_per_worker=1),
        Settings(probe=False),
        Settings(slots=2),  # measured for four
    ],
)
def test_what_the_settings_say_is_not_changed(
    environ: dict[str, str], path: Path, settings: Settings
) -> None:
    assert measured(environ, path, settings) == settings


def test_a_choice_gives_weights_width_and_attention(environ: dict[str, str], path: Path) -> None:
    better = choose(environ, path)
    found = as_tuned(environ, path, Settings())
    assert found.file == ModelFile(str(better), "a")
    assert found.files == identify([better])
    assert (found.settings.threads, found.settings.slots) == (2, 8)
    assert found.settings.flash_attention is FlashAttention.OFF
    assert found.tuned == {
        "weights": "Q8_0",
        "threads_per_worker": "2",
        "flash_attention": "off",
    }


@pytest.mark.parametrize(
    ("kind", "asked", "served", "used"),
    [
        (ModelKind.CHAT, KindChoice.AUTO, KindChoice.AUTO, True),
        (ModelKind.CHAT, KindChoice.AUTO, KindChoice.CHAT, True),
        (ModelKind.CHAT, KindChoice.AUTO, KindChoice.EMBEDDING, False),
        (ModelKind.EMBEDDING, KindChoice.AUTO, KindChoice.EMBEDDING, True),
        (ModelKind.EMBEDDING, KindChoice.EMBEDDING, KindChoice.EMBEDDING, True),
        (ModelKind.EMBEDDING, KindChoice.EMBEDDING, KindChoice.AUTO, False),
        (ModelKind.EMBEDDING, KindChoice.EMBEDDING, KindChoice.CHAT, False),
    ],
)
def test_what_was_judged_as_another_kind_of_model_is_not_used(
    environ: dict[str, str],
    path: Path,
    kind: ModelKind,
    asked: KindChoice,
    served: KindChoice,
    used: bool,
) -> None:
    choose(environ, path, kind=kind, asked_kind=asked)
    found = as_tuned(environ, path, Settings(kind=served))
    assert (found.file.path != str(path)) is used
    assert bool(found.tuned) is used


def test_a_choice_does_not_overrule_the_settings(environ: dict[str, str], path: Path) -> None:
    better = choose(environ, path)
    settings = Settings(workers=1, flash_attention=FlashAttention.ON)
    found = as_tuned(environ, path, settings)
    assert found.settings == settings
    assert found.file.path == str(better)


def test_without_tuned_nothing_is_changed(environ: dict[str, str], path: Path) -> None:
    choose(environ, path)
    before = start(path, Settings(tuned=False))
    assert remembered.as_tuned(before, environ, BOX, Roots()) == before


def test_a_changed_original_is_served_as_it_is(environ: dict[str, str], path: Path) -> None:
    choose(environ, path)
    path.write_bytes(b"GGUF changed")
    found = as_tuned(environ, path, Settings())
    assert msgspec.structs.replace(found, tuned={}) == start(path, Settings())
