"""What was measured is kept, and only found where it holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.machine.tree import Roots
from lbhost.tuning import identity, shelf
from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import Shape, Speeds
from lbhost.tuning.shelf import MeasuredShape
from lbhost.weights import FilePart

BOX = Topology(cores=(PhysicalCore(cpus=(0,)), PhysicalCore(cpus=(1,))), allowed=frozenset({0, 1}))
PART = FilePart("/models/a.gguf", device=1, inode=2, size=3, mtime_ns=4)


def here(part: FilePart = PART, box: Topology = BOX, slots: int = 4) -> Identity:
    return identity.of([part], box, Roots(), slots)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def keep(environ: dict[str, str], found: Identity) -> MeasuredShape:
    record = MeasuredShape(found, Shape(2, 1), {"1 x 2": Speeds(300, 100)})
    shelf.write(shelf.shape_path(environ, found), record)
    return record


def test_what_was_kept_is_found(environ: dict[str, str]) -> None:
    record = keep(environ, here())
    assert shelf.shape(environ, here()) == record


@pytest.mark.parametrize(
    "other",
    [
        here(msgspec.structs.replace(PART, size=4)),
        here(msgspec.structs.replace(PART, mtime_ns=5)),
        here(msgspec.structs.replace(PART, path="/models/b.gguf")),
        here(box=msgspec.structs.replace(BOX, allowed=frozenset({0}))),
        here(box=msgspec.structs.replace(BOX, quota_cpus=1.0)),
        here(box=Topology((PhysicalCore((0,)), PhysicalCore((1,), node=1)), BOX.allowed)),
        here(slots=2),
        msgspec.structs.replace(here(), build="another"),
        msgspec.structs.replace(here(), cpu="another"),
    ],
)
def test_another_model_box_or_build_is_measured_anew(
    environ: dict[str, str], other: Identity
) -> None:
    keep(environ, here())
    assert shelf.shape(environ, other) is None


def test_a_model_that_was_moved_is_still_the_same(environ: dict[str, str]) -> None:
    keep(environ, here())
    assert shelf.shape(environ, here(msgspec.structs.replace(PART, path="/mnt/a.gguf"))) is not None


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"null", b"[]", b'{"shape": 1}', b"\xff\xfe", b"{}" * 9]
)
def test_a_damaged_file_is_as_good_as_none(environ: dict[str, str], damage: bytes) -> None:
    keep(environ, here())
    shelf.shape_path(environ, here()).write_bytes(damage)
    assert shelf.shape(environ, here()) is None


def test_the_record_of_another_case_under_this_name_is_none(environ: dict[str, str]) -> None:
    other = here(slots=2)
    keep(environ, other)
    shelf.shape_path(environ, other).replace(shelf.shape_path(environ, here()))
    assert shelf.shape(environ, here()) is None


def test_a_failed_write_leaves_the_old_record_and_no_litter(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = keep(environ, here())
    path = shelf.shape_path(environ, here())

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        shelf.write(path, msgspec.structs.replace(record, shape=Shape(1, 2)))
    assert shelf.shape(environ, here()) == record
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/lbhost"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/lbhost"),
        ({"HOME": "/h"}, "/h/.cache/lbhost"),
    ],
)
def test_the_cache_is_where_the_desktop_specification_says(
    environ: dict[str, str], path: str
) -> None:
    assert shelf.folder(environ) == Path(path)
