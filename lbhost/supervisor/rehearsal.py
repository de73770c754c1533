"""Whether a configuration can be served, without serving it: for `lbhost reload --dry-run`.

Goes through what a new server settles before its first process starts (model_startup.py), on the
box as it is. Downloads and measures nothing. Files of models are read by a confined process, as
ever, and the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from lbhost import inspection, model
from lbhost.config import Settings
from lbhost.errors import ModelDamagedError, ModelFileError
from lbhost.inspection import Answer, Ask, Found, Question
from lbhost.machine.tree import Roots
from lbhost.model import ModelFile
from lbhost.supervisor import model_startup
from lbhost.supervisor.children import Children
from lbhost.supervisor.model_startup import Found as Box
from lbhost.supervisor.model_startup import PreparedModel, Reading
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.succession import Context
from lbhost.weights import identify, parts

READ_LIMIT_S = 60.0
"""A person waits. Reading takes a second at most, from a disk that answers."""


class _Unread(Exception):  # noqa: N818 - no error: it is asked, and all begins anew
    """The answer to this is not known yet."""

    def __init__(self, question: Question) -> None:
        self.question = question


class _NotFetched(Exception):  # noqa: N818 - no error: nobody can tell yet
    """This model may have to be downloaded first."""

    def __init__(self, spec: str) -> None:
        self.spec = spec


async def rehearse(
    settings: Settings, prepared: Prepared, before: Sequence[Context], children: Children
) -> list[str]:
    """Lines about what nobody can tell before it happens; none where everything can be told.

    Args:
        before: how the models are served now.

    Raises:
        StartupError, UsageError: a new server would not start with these settings.
    """
    known: dict[Question, Answer] = {
        question: Found(made.info) for made in prepared.models for question in _still_true(made)
    }

    def ask(question: Question) -> Answer:
        if question not in known:
            raise _Unread(question)
        return known[question]

    reading = Reading(
        _Resolver(prepared),
        partial(inspection.inspect, ask=ask),
        partial(inspection.inspect_adapters, ask=ask),
        tells=False,
    )
    roots = Roots.from_environ(os.environ)
    box = Box(os.environ, roots, prepared.reread(), prepared.gpus, prepared.gpu_capable)
    unmeasured = msgspec.structs.replace(settings, probe=False)
    while True:
        try:
            found = model_startup.find(unmeasured, box, before, reading)
        except _Unread as unread:
            known[unread.question] = await _read(unread.question, children)
        except _NotFetched as error:
            return [f"{error.spec} may have to be downloaded: not looked into, nor what follows it"]
        else:
            model_startup.with_contexts(found, prepared.board)
            return []


def _still_true(made: PreparedModel) -> list[Question]:
    """What is known of a model that is served, if its file is still the same."""
    path, settings = made.info.path, made.settings
    try:
        same = identify(parts(Path(path))) == made.weights
    except ModelFileError:
        return []
    return [Ask(path, settings.kind, settings.pooling)] if same else []


class _Resolver:
    """Finds files as ever, but asks no hub."""

    def __init__(self, prepared: Prepared) -> None:
        self._here: dict[str, str] = {}
        for own, made in zip(prepared.settings.served(), prepared.models, strict=True):
            self._here[own.model] = made.file.path
            files = [adapter.file.path for adapter in made.adapters]
            self._here |= dict(zip((one.path for one in own.adapters), files, strict=False))

    def __call__(self, spec: str, alias: str | None) -> ModelFile:
        if not spec.startswith("hf:"):
            return model.resolve(spec, alias)
        if spec not in self._here:
            raise _NotFetched(spec)
        return model.resolve(self._here[spec], alias)


async def _read(question: Question, children: Children) -> Answer:
    """What the files say.

    Raises:
        ModelFileError: they are no good, or no process could read them.
    """
    path = inspection.what(question)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        try:
            with theirs:
                pid = children.spawn(
                    inspection.MODULE,
                    theirs.fileno(),
                    inspection.environment(),
                    lambda _how, _well: None,
                )
        except OSError as error:
            raise ModelFileError(f"{path}: no process can read it: {error.strerror}") from error
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                await loop.sock_sendall(ours, msgspec.msgpack.encode(question))
                data = await loop.sock_recv(ours, inspection.MAX_PACKET)
        except TimeoutError as error:
            raise ModelFileError(f"{path}: not read within {READ_LIMIT_S:g} s") from error
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
        finally:
            children.signal(pid, signal.SIGKILL)
    if not data:
        raise ModelDamagedError(f"{path}: llama.cpp cannot read it")
    return inspection.answered(question, data)
