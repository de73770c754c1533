"""What a model's file says of itself, read by a process that could do nothing with a bad one.

A GGUF comes from strangers. It is checked (gguf.py) and read by llama.cpp in a process of its own,
under limits on time and memory and confined (sandbox/profiles.py); what that says is bounded
and typed. `inspect` is all there is to call; `python -m lbhost.inspection` is the process.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import setproctitle

from lbhost import adapter_fit, gguf, llama, regular_file
from lbhost.errors import AdapterFileError, ModelDamagedError, ModelFileError, UsageError
from lbhost.gguf import Tensor
from lbhost.gguf_file import GgufFile
from lbhost.llamacpp import collect_errors
from lbhost.purpose import KindChoice, PoolingChoice
from lbhost.sandbox import profiles
from lbhost.sandbox.environment import scrubbed
from lbhost.side_process import SideProcess
from lbhost.weights import parts

MODULE = "lbhost.inspection"
MAX_PACKET = 64 * 1024
CPU_S = 120
WAIT_S = 300.0
"""A header may lie on a slow disk; reading one takes 0.1 to 1 s."""
MEMORY_BYTES = 4 * 1024**3
"""Address space beyond what the libraries take. A vocabulary of 260,000 takes 0.2 GiB."""
MAX_TEXT = 512
"""Characters of a name from the file."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Read this model."""

    path: str
    kind: KindChoice
    pooling: PoolingChoice


class AskAdapters(msgspec.Struct, frozen=True, tag="ask_adapters"):
    """Do these fit the model?"""

    path: str
    """The model's."""
    adapters: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It cannot be used, and why."""

    message: str
    damaged: bool
    adapter: int | None = None
    """The place of the adapter to blame; None: it is the model."""


class Fit(msgspec.Struct, frozen=True, tag="fit"):
    """All of them do."""


class Found(msgspec.Struct, frozen=True, tag="found"):
    """It can be read."""

    info: llama.ModelInfo


Question: TypeAlias = Ask | AskAdapters
Answer: TypeAlias = Found | Fit | Refused


def inspect(
    path: str | Path,
    kind: KindChoice = KindChoice.AUTO,
    pooling: PoolingChoice = PoolingChoice.AUTO,
    ask: Callable[[Question], Answer] | None = None,
) -> llama.ModelInfo:
    """Check a model's files and read their header; half a second, no weights are read.

    To be called in the main thread; arguments as llama.inspect's.

    Args:
        ask: has the process read it in another way; None: by waiting for it.

    Raises:
        ModelDamagedError: a file is not GGUF, truncated, or says what cannot be; one line.
        ModelFileError: missing, an unknown architecture, or a model that cannot be served.
    """
    answer = (ask or _ask)(Ask(str(path), kind, pooling))
    if not isinstance(answer, Found):
        raise _error(answer, path)
    return _brief(answer.info)  # it may have been taken over by what it has read


def inspect_adapters(
    path: str | Path, adapters: Sequence[str], ask: Callable[[Question], Answer] | None = None
) -> None:
    """Check LoRA adapters' files, and that they fit a model, as `inspect` does; that is passed.

    Raises:
        AdapterFileError: one is missing, damaged, no LoRA adapter, or for another model.
        ModelFileError: it is the model's file that cannot be read.
    """
    answer = (ask or _ask)(AskAdapters(str(path), tuple(adapters)))
    if isinstance(answer, Refused) and answer.adapter is not None:
        place = min(max(0, answer.adapter), len(adapters) - 1)
        raise AdapterFileError(_printable(answer.message), place)
    if not isinstance(answer, Fit):
        raise _error(answer, path)


def _error(answer: Answer, path: str | Path) -> ModelFileError:
    if not isinstance(answer, Refused):
        return ModelDamagedError(f"{path}: the process that read it says nonsense")
    return (ModelDamagedError if answer.damaged else ModelFileError)(_printable(answer.message))


def _ask(question: Question) -> Answer:
    """The answer of a process that reads the files. Raises ModelFileError and its kin."""
    path = what(question)
    process = SideProcess(MODULE, environment())
    try:
        with process as link:
            link.settimeout(WAIT_S)
            link.send(msgspec.msgpack.encode(question))
            data = link.recv(MAX_PACKET)
            if not data:
                raise ModelDamagedError(f"{path}: llama.cpp cannot read it: {_how(process)}")
    except TimeoutError as error:
        raise ModelDamagedError(f"{path}: not read within {WAIT_S:g} s") from error
    except OSError as error:
        raise ModelFileError(f"{path}: no process can read it: {error.strerror}") from error
    return answered(question, data)


def what(question: Question) -> str:
    """What is read, for a refusal."""
    more = " or an adapter of it" if isinstance(question, AskAdapters) else ""
    return f"{question.path}{more}"


def environment() -> dict[str, str]:
    """The environment of the process."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**scrubbed(os.environ), **quiet}


def answered(question: Question, data: bytes) -> Answer:
    """What the process has sent. Raises ModelDamagedError: nonsense."""
    try:
        answer: Answer = msgspec.msgpack.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelDamagedError(
            f"{what(question)}: the process that read it says nonsense"
        ) from error
    return answer


def _how(process: SideProcess) -> str:
    """Why there is no answer."""
    status = process.how_it_ended(10.0)
    if status is not None and status < 0:
        return f"the process that tried ended with {signal.Signals(-status).name}"
    return f"the process that tried ended with code {status}"


# --- the process --------------------------------------------------------------------------


def main() -> int:
    """Answer one question."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("--control-fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().control_fd)
    setproctitle.setproctitle("lbhost inspecting")
    data = link.recv(MAX_PACKET)
    if data:
        asked = msgspec.msgpack.decode(data, type=Ask | AskAdapters)
        answer = _inspected(asked) if isinstance(asked, Ask) else _compared(asked)
        link.send(msgspec.msgpack.encode(answer))
    return 0


def _inspected(asked: Ask) -> Answer:
    path = Path(asked.path)
    try:
        files = parts(path)
        profiles.reader(files, os.environ)
        _limit()
        for part in files:
            _verify(part)
        return Found(_brief(llama.inspect(path, asked.kind, asked.pooling)))
    except ERRORS as error:
        return _refused(path, error)


def _compared(asked: AskAdapters) -> Answer:
    """Each adapter with the model."""
    path = Path(asked.path)
    try:
        files = parts(path)
        profiles.reader([*files, *asked.adapters], os.environ)
        _limit()
        shapes = {tensor.name: tensor.dimensions for part in files for tensor in _verify(part)}
        architecture = _header(files[0]).text("general.architecture") or ""
    except ERRORS as error:
        return _refused(path, error)
    for number, adapter in enumerate(asked.adapters):
        refused = _misfit(Path(adapter), architecture, shapes)
        if refused is not None:
            return msgspec.structs.replace(refused, adapter=number)
    return Fit()


def _misfit(path: Path, architecture: str, shapes: adapter_fit.Shapes) -> Refused | None:
    """Why an adapter is of no use to a model of these shapes; None: it is."""
    try:
        tensors, file = _verify(path), _header(path)
        header = adapter_fit.Header(
            kind=file.text("general.type"),
            adapter=file.text("adapter.type"),
            architecture=file.text("general.architecture"),
            alpha=file.real("adapter.lora.alpha"),
            says_alpha=file.has("adapter.lora.alpha"),
            activated=file.has("adapter.alora.invocation_tokens"),
        )
        found = adapter_fit.problem(header, tensors, architecture, shapes)
    except ERRORS as error:
        return _refused(path, error)
    return None if found is None else Refused(f"{path}: {found}", damaged=False)


def _header(path: Path) -> GgufFile:
    with collect_errors() as errors:
        return GgufFile(path, errors)


ERRORS = (ModelFileError, MemoryError, OverflowError, ArithmeticError, ValueError)
"""What reading a file may raise; in this process a bad file can do no more."""


def _refused(path: Path, error: Exception) -> Refused:
    if isinstance(error, ModelFileError):
        return Refused(error.message, isinstance(error, ModelDamagedError))
    return Refused(f"{path}: damaged: {error or type(error).__name__}", damaged=True)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    _lower(resource.RLIMIT_CPU, CPU_S)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (most, most))


def _verify(path: Path) -> list[Tensor]:
    """Raises ModelFileError."""
    try:
        with regular_file.opened(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelDamagedError(f"{path}: not a GGUF file: it is empty")
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                return gguf.verify(data)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such model file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read it: {error.strerror}") from error
    except UsageError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except gguf.GgufError as error:
        raise ModelDamagedError(f"{path}: {error}") from error


def _brief(info: llama.ModelInfo) -> llama.ModelInfo:
    """Its texts come from the file."""
    name, architecture = _printable(info.name), _printable(info.architecture)
    return msgspec.structs.replace(info, name=name, architecture=architecture)


def _printable(text: str) -> str:
    """As it may be shown on a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])


if __name__ == "__main__":
    sys.exit(main())
