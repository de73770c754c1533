"""A model's LoRA adapters, found and checked: their files are there, and fit the model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lbhost import llama
from lbhost.adapters import Adapter, AdapterFile
from lbhost.errors import AdapterFileError, ModelFileError, UsageError
from lbhost.model import ModelFile
from lbhost.weights import identify, unchanged


def find(
    wanted: Sequence[Adapter],
    file: ModelFile,
    info: llama.ModelInfo,
    resolve: Callable[[str, str | None], ModelFile],
    inspect: Callable[[str, Sequence[str]], None],
) -> tuple[AdapterFile, ...]:
    """The adapters of a model, in their order.

    Args:
        file, info: the model's.
        resolve, inspect: as model.resolve and inspection.inspect_adapters do it.

    Raises:
        UsageError: one line that names the adapter.
    """
    if wanted and not info.purpose.generates:
        raise UsageError(
            f"--adapters {wanted[0].name!r}: only models that generate text can have adapters"
        )
    found: list[AdapterFile] = []
    for one in wanted:
        if one.name == file.alias:
            raise UsageError(f"--adapters {one.name!r}: the model itself is called so")
        try:
            path = Path(resolve(one.path, None).path)
            found.append(AdapterFile(one.name, one.scale, *identify([path])))
        except ModelFileError as error:
            raise UsageError(f"--adapters {one.name!r}: {error.message}") from error
    if found:
        try:
            with unchanged([one.file for one in found]):
                inspect(info.path, [one.file.path for one in found])
        except AdapterFileError as error:
            name = found[error.place].name
            raise UsageError(f"--adapters {name!r}: {error.message}") from error
    return tuple(found)
