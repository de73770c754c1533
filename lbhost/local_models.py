"""GGUF files that are on this box already, where people's other programs keep them.

Only looks: downloads nothing, opens no model, follows no name out of a program's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from lbhost.errors import ModelFileError
from lbhost.weights import parts

_MODEL_LAYER = "application/vnd.ollama.image.model"
_OLLAMAS_OWN = "registry.ollama.ai"
"""The host that Ollama's names leave out."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_MOST_FILES = 10_000
"""That are looked at in one place."""


class LocalModel(msgspec.Struct, frozen=True):
    """A model that `--model` can name."""

    spec: str
    """How it names it."""
    where: str
    """Whose it is."""
    path: str
    """The file, or the first of its parts."""
    bytes: int
    """Of all parts."""
    complete: bool
    """Whether all parts are there."""
    served: tuple[str, ...] = ()
    """The names that it has in the server that runs here, if one serves it."""


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str = ""
    digest: str = ""


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []


def marked(models: Iterable[LocalModel], served: Mapping[str, str]) -> list[LocalModel]:
    """The same, those marked that a server serves.

    Args:
        served: their files' paths by name.
    """
    names: dict[str, list[str]] = {}
    for name, path in served.items():
        names.setdefault(os.path.realpath(path), []).append(name)
    return [
        msgspec.structs.replace(one, served=tuple(names.get(os.path.realpath(one.path), ())))
        for one in models
    ]


def find(environ: Mapping[str, str]) -> list[LocalModel]:
    """All models in the caches of Hugging Face, Ollama, LM Studio and llama.cpp.

    Args:
        environ: HF_HUB_CACHE, HF_HOME, OLLAMA_MODELS, LLAMA_CACHE and HOME say where they are, as
            they do for those programs.
    """
    found = [*_hugging_face(environ), *_ollama(environ)]
    home = _home(environ)
    for where, folder in (
        ("LM Studio", home / ".lmstudio" / "models"),
        ("LM Studio", home / ".cache" / "lm-studio" / "models"),
        ("llama.cpp", Path(environ.get("LLAMA_CACHE") or _caches(environ) / "llama.cpp")),
    ):
        found += (_local(str(path), where, path) for path in _ggufs(folder))
    return found


def in_hub_cache(repo: str, environ: Mapping[str, str]) -> list[str]:
    """The GGUF files of a Hugging Face repository that were downloaded before, by their names."""
    prefix = f"hf:{repo}:"
    return [
        model.spec.removeprefix(prefix)
        for model in _hugging_face(environ)
        if model.spec.startswith(prefix)
    ]


def ollama(name: str, environ: Mapping[str, str]) -> Path:
    """The weights of a model that Ollama has pulled.

    Args:
        name: NAME[:TAG] as Ollama calls it; the tag `latest` can be left out.

    Raises:
        ModelFileError: it is not there; the message names those that are.
    """
    tagged = ":" in name.rpartition("/")[2]  # a host may have a port
    spec = f"ollama:{name if tagged else name + ':latest'}"
    models = list(_ollama(environ))
    for model in models:
        if model.spec == spec:
            return Path(model.path)
    there = ", ".join(sorted(model.spec for model in models)) or "none"
    raise ModelFileError(f"Ollama has no model {name} here; it has: {there}")


def _hugging_face(environ: Mapping[str, str]) -> Iterator[LocalModel]:
    """Every file of the revision that `main` was when it was last asked for."""
    for repo in _folders(hub_cache(environ)):
        match = re.fullmatch(r"models--(.+?)--(.+)", repo.name)
        if match is None:
            continue
        for revision in _revisions(repo):
            for path in _ggufs(revision):
                name = path.relative_to(revision)
                yield _local(f"hf:{match[1]}/{match[2]}:{name}", "Hugging Face", path)


def _revisions(repo: Path) -> list[Path]:
    """The snapshot of `main`, or the newest where nothing says which that is."""
    snapshots = _folders(repo / "snapshots")
    try:
        main = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    named = [one for one in snapshots if one.name == main]
    return named or sorted(snapshots, key=lambda one: one.stat().st_mtime)[-1:]


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface-hub keeps what it has downloaded."""
    if chosen := environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    home = environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _caches(environ) / "huggingface") / "hub"


def _ollama(environ: Mapping[str, str]) -> Iterator[LocalModel]:
    chosen = environ.get("OLLAMA_MODELS")
    places = (
        [Path(chosen)]
        if chosen
        else [
            _home(environ) / ".ollama" / "models",
            Path("/usr/share/ollama/.ollama/models"),
        ]
    )
    for place in places:
        for manifest in _files(place / "manifests"):
            model = _of_manifest(place, manifest)
            if model is not None:
                yield model


def _of_manifest(place: Path, manifest: Path) -> LocalModel | None:
    """manifests/HOST/NAMESPACE/NAME/TAG names the blob that holds the weights."""
    steps = manifest.relative_to(place / "manifests").parts
    if len(steps) != 4:
        return None
    try:
        layers = msgspec.json.decode(manifest.read_bytes(), type=_Manifest).layers
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # no manifest, or not ours to read
    host, namespace, name, tag = steps
    whose = "" if namespace == "library" else f"{namespace}/"
    if host != _OLLAMAS_OWN:
        whose = f"{host}/{namespace}/"
    for layer in layers:
        digest = _DIGEST.fullmatch(layer.digest)
        if layer.media_type == _MODEL_LAYER and digest:
            blob = place / "blobs" / f"sha256-{digest[1]}"
            return _local(f"ollama:{whose}{name}:{tag}", "Ollama", blob)
    return None


def _local(spec: str, where: str, path: Path) -> LocalModel:
    sizes = [_size(part) for part in parts(path)]
    complete = all(size is not None for size in sizes)
    return LocalModel(spec, where, str(path), sum(size or 0 for size in sizes), complete)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def is_model(name: str) -> bool:
    """Whether a file is one that can be served: no projector, no later part of a split one."""
    lower = name.lower()
    return lower.endswith(".gguf") and "mmproj" not in lower and not _LATER_PART.search(name)


def _ggufs(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if is_model(path.name))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order; nothing where it is not there or not ours to read."""
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            seen += 1
            if seen > _MOST_FILES:
                return
            yield Path(parent, name)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError:
        return []


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _caches(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or _home(environ) / ".cache")
