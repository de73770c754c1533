"""One table of `[[models]]` in lbhost.toml: a model of several, and what it has of its own.

What a table leaves out is as the server's settings say; Settings.served puts the two together.
Pure.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from lbhost import adapters as adapter_tables
from lbhost.adapters import Adapter
from lbhost.errors import UsageError
from lbhost.purpose import KindChoice, PoolingChoice
from lbhost.setting_values import LONGEST_NAME, Count, Names, checked, names, require_name

MOST_MODELS = 16
"""That one server serves."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model's table. `name` and `path` are what `--alias` and `--model` are for a single one;
    any other field is the setting of its name, for this model, where it is given."""

    name: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)]
    """What clients call it."""
    path: Annotated[str, Meta(min_length=1)]
    """What `--model` takes."""
    aliases: Names = ()
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters of it, each a table [[models.adapters]]."""
    kind: KindChoice = KindChoice.AUTO
    pooling: PoolingChoice = PoolingChoice.AUTO
    workers: Count | str | None = None
    min_workers: Annotated[int, Meta(ge=0, le=1024)] | None = None
    max_workers: Count | None = None
    idle_timeout_s: Annotated[float, Meta(ge=0, le=30 * 86400)] | None = None
    idle_unload: bool | None = None
    threads_per_worker: Annotated[int, Meta(ge=1, le=256)] | None = None
    slots: Annotated[int, Meta(ge=1, le=64)] | None = None
    ctx_size: Annotated[int, Meta(ge=64, le=1_048_576)] | None = None
    memory_limit: int | str | None = None
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    """Its part of the cores, against the other models' parts, where the load says how many workers
    there are and not all can have what they need. No setting of a single model."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that clients may call it, its own first."""
        return (self.name, *names(self.aliases))


_HINTS = get_type_hints(ModelEntry, include_extras=True)


def entries(tables: object, where: str, servers: Container[str] = ()) -> tuple[ModelEntry, ...]:
    """The tables as they are meant.

    Args:
        tables: what the file has under `models`.
        where: the file, for refusals.
        servers: keys of the whole server, which end up in a table when they are written below it.

    Raises:
        UsageError: one line naming table, key and reason.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where}: models: expected tables, each under a line [[models]]")
    if not 1 <= len(tables) <= MOST_MODELS:
        raise UsageError(f"{where}: models: expected 1 to {MOST_MODELS}, got {len(tables)}")
    found = tuple(_entry(table, f"{where}: models[{i}]", servers) for i, table in enumerate(tables))
    _require_different(found, where)
    return found


def _entry(table: dict[str, Any], where: str, servers: Container[str]) -> ModelEntry:
    for key in ("name", "path"):
        if key not in table:
            raise UsageError(f"{where}.{key}: missing")
    for key in table:
        if key not in _HINTS and key in servers:
            raise UsageError(
                f"{where}.{key}: is the whole server's: write it above the first [[models]]"
            )
    entry = ModelEntry(**{k: _value(k, v, f"{where}.{k}") for k, v in table.items()})
    try:
        require_name(entry.name, f"{where}.name")
        for alias in entry.names[1:]:
            require_name(alias, f"{where}.aliases")
    except ValueError as error:
        raise UsageError(str(error)) from None
    return entry


def _value(key: str, value: Any, where: str) -> Any:
    if key == "adapters":
        return adapter_tables.parse(value, where, _HINTS)
    return checked(key, value, _HINTS, where)


def _require_different(found: Sequence[ModelEntry], where: str) -> None:
    """Raises UsageError if two have one name."""
    taken: dict[str, int] = {}
    for i, entry in enumerate(found):
        own = dict.fromkeys(entry.names)
        keys = [(name, "name" if name == entry.name else "aliases") for name in own]
        keys += [(one.name, f"adapters[{at}].name") for at, one in enumerate(entry.adapters)]
        for name, key in keys:
            if name in taken:
                raise UsageError(
                    f"{where}: models[{i}].{key}: {name!r} is a name of models[{taken[name]}] too"
                )
            taken[name] = i
