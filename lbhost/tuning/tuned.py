"""A tuned choice: what `lbhost tune` found best for a model on this box, where `serve` finds it.

A record and, if the weights were rewritten, a GGUF file beside it, both in the user's cache. Used
only while the original's files, the box and the build are what they were, and the rewritten file is
the one that was measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from lbhost.errors import TuningError
from lbhost.purpose import KindChoice, ModelKind
from lbhost.tuning import shelf
from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import Shape, Speeds

VERSION = 1
ANY_SLOTS = 0
"""A tuned choice holds for any number of slots."""
_WORK = "work-"


class RewrittenFile(msgspec.Struct, frozen=True):
    """The weights in another format."""

    name: str
    format: str
    size: int
    mtime_ns: int


class Finding(msgspec.Struct, frozen=True):
    """One thing that was tried."""

    what: str
    speeds: Speeds | None
    """None: not measured."""
    gain: float | None
    """Requests a second beside what it was paired with."""
    kl: float | None = None
    """What is lost against the original: nats a token, or of vectors 1 - cosine; None: nothing can
    be."""
    agreement: float | None = None
    size: int | None = None
    note: str = ""


class Tuned(msgspec.Struct, frozen=True):
    """The choice and what it rests on."""

    identity: Identity
    """Of the original."""
    model: str
    """Path of the original, for a person."""
    shape: Shape
    file: RewrittenFile | None
    flash_attention: bool | None
    """None: as it would be by itself."""
    findings: tuple[Finding, ...]
    kind: ModelKind = ModelKind.CHAT
    """What it was measured and judged as, …"""
    asked_kind: KindChoice = KindChoice.AUTO
    """…and what it had been asked to be."""
    version: int = VERSION

    def suits(self, asked: KindChoice) -> bool:
        """Whether it was judged as what a model that is asked to be this will be."""
        return asked.value == self.kind.value or asked is self.asked_kind


def folder(environ: Mapping[str, str]) -> Path:
    """Where tuned choices are."""
    return shelf.folder(environ) / "tuned"


def find(environ: Mapping[str, str], identity: Identity) -> Tuned | None:
    """The choice for this case; None if there is none, or its file is not as it was."""
    found = shelf.read(folder(environ) / f"{identity.key}.json", Tuned)
    if found is None or found.identity != identity or found.version != VERSION:
        return None
    if found.file is not None:
        try:
            stat = path(environ, found.file).stat()
        except OSError:
            return None
        if (stat.st_size, stat.st_mtime_ns) != (found.file.size, found.file.mtime_ns):
            return None
    return found


def path(environ: Mapping[str, str], file: RewrittenFile) -> Path:
    """Where a rewritten file is. Only its last part counts: a record names no other folder."""
    return folder(environ) / Path(file.name).name


def keep(environ: Mapping[str, str], choice: Tuned, written: Path | None) -> None:
    """Make a choice the one that is found; what was chosen for this model before is removed.

    Args:
        written: the rewritten file in the work folder, to be moved; needs `choice.file`.

    Raises:
        TuningError: it cannot be written.
    """
    try:
        folder(environ).mkdir(mode=0o700, parents=True, exist_ok=True)
        if written is not None and choice.file is not None:
            written.replace(path(environ, choice.file))
        shelf.write(folder(environ) / f"{choice.identity.key}.json", choice)
        _remove(environ, Path(choice.model), choice)
    except OSError as error:
        raise TuningError(f"the choice cannot be kept: {error}") from error


def forget(environ: Mapping[str, str], model: Path) -> int:
    """Remove every choice for a model, whatever it was then; how many there were.

    Raises:
        OSError: something cannot be removed.
    """
    return _remove(environ, model, None)


def _remove(environ: Mapping[str, str], model: Path, but: Tuned | None) -> int:
    count = 0
    kept = set()
    if but is not None:
        kept = {f"{but.identity.key}.json", but.file.name if but.file else ""}
    for record in sorted(folder(environ).glob("*.json")):
        found = shelf.read(record, Tuned)
        if found is not None and Path(found.model) != model:
            continue  # a damaged record is nobody's and goes as well
        # The files first: one whose record is gone would never be found again.
        files = [*folder(environ).glob(f"{record.stem}-*.gguf"), record]
        gone = [file for file in files if file.name not in kept]
        for file in gone:
            file.unlink(missing_ok=True)
        count += found is not None and record in gone
    return count


@contextlib.contextmanager
def workroom(environ: Mapping[str, str]) -> Iterator[Path]:
    """A folder for what is tried; gone after, and with it what killed runs have left.

    Raises:
        TuningError: it cannot be made.
    """
    place = folder(environ)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=place))
        lock = os.open(work / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TuningError(f"cannot write to {place}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(place)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _sweep(place: Path) -> None:
    """Remove the folders of runs that are gone: nobody holds their locks."""
    for left in place.glob(_WORK + "*"):
        try:
            lock = os.open(left / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # about to be made, or about to be gone
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)
