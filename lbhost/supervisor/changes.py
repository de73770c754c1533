"""What a change of the configuration takes, by key: the one table of `lbhost reload`. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import PurePath

import msgspec

from lbhost.config import FLAGS, KEYS, SECRET, Settings, flag_name
from lbhost.model_entry import ModelEntry


class How(enum.StrEnum):
    """How a changed key comes into force."""

    LIVE = "live"
    """At once; what runs is not disturbed."""
    ROLLING = "rolling"
    """Each worker gets a new process in turn, a spare first; requests move."""
    SCALING = "scaling"
    """Workers come, or go after their requests have moved."""
    HANDOVER = "handover"
    """A new server beside this one takes over its sockets; requests end where they began."""
    RESTART = "restart"
    """Not without a restart of lbhost: refused."""


HOW: dict[str, How] = {
    "model": How.HANDOVER,
    "alias": How.HANDOVER,
    "aliases": How.HANDOVER,
    "adapters": How.HANDOVER,
    "models": How.HANDOVER,
    "kind": How.HANDOVER,
    "pooling": How.HANDOVER,
    "embedding_cache": How.HANDOVER,
    "host": How.RESTART,
    "port": How.RESTART,
    "api_key": How.LIVE,
    "keys_file": How.LIVE,  # within its folder, see _how
    "insecure_no_key": How.LIVE,
    "allowed_hosts": How.LIVE,
    "allowed_origins": How.LIVE,
    "workers": How.SCALING,
    "min_workers": How.HANDOVER,
    "max_workers": How.HANDOVER,
    "idle_timeout_s": How.LIVE,
    "idle_unload": How.LIVE,
    "threads_per_worker": How.HANDOVER,
    "probe": How.HANDOVER,
    "tuned": How.HANDOVER,
    "flash_attention": How.HANDOVER,
    "lend": How.LIVE,
    "slots": How.HANDOVER,
    "ctx_size": How.HANDOVER,
    "state_cache": How.LIVE,
    "state_dir": How.HANDOVER,
    "state_dir_size": How.HANDOVER,
    "memory_limit": How.LIVE,
    "share_prefixes": How.LIVE,
    "policy": How.LIVE,
    "runtime_dir": How.RESTART,
    "inter_token_target_ms": How.ROLLING,
    "queue_size": How.LIVE,
    "queue_tokens": How.LIVE,
    "prompt_helpers": How.HANDOVER,
    "queue_timeout_s": How.LIVE,
    "request_timeout_s": How.LIVE,
    "shutdown_grace_s": How.LIVE,
    "max_connections": How.LIVE,
    "max_body_bytes": How.LIVE,
    "max_header_bytes": How.LIVE,
    "header_timeout_s": How.LIVE,
    "body_timeout_s": How.LIVE,
    "keep_alive_s": How.LIVE,
    "warm_c": How.LIVE,
    "hot_c": How.LIVE,
    "nice": How.ROLLING,
    "restart_budget": How.LIVE,
    "restart_window_s": How.LIVE,
    "log_format": How.ROLLING,
    "log_level": How.ROLLING,
}


class Change(msgspec.Struct, frozen=True):
    """One key that has another value now."""

    key: str
    before: str
    after: str
    """As text; of a secret, only whether there is one."""
    how: How
    within: str = ""
    """Of `models`: which table's which key."""

    def __str__(self) -> str:
        where = f"{self.key}.{self.within}" if self.within else self.key
        return f"{where}: {self.before} -> {self.after} ({self.how})"


class Plan(msgspec.Struct, frozen=True):
    """What a changed configuration takes."""

    changes: Sequence[Change] = ()

    def keys(self, *how: How) -> list[str]:
        """The changed keys that come into force so."""
        return list(dict.fromkeys(change.key for change in self.changes if change.how in how))

    @property
    def lines(self) -> list[str]:
        """For a person, one a change."""
        return [str(change) for change in self.changes]


def plan(before: Settings, after: Settings, *, model_changed: bool = False) -> Plan:
    """Compare two configurations as they were asked for.

    Args:
        model_changed: the model's file is another one than the one that was loaded.
    """
    changes = [
        change
        for key in KEYS
        if getattr(before, key) != getattr(after, key)
        for change in _changes(key, before, after)
    ]
    if model_changed and all(change.key != "model" for change in changes):
        changes.append(Change("model", after.model, "another file", How.HANDOVER))
    return Plan(changes)


def table() -> list[str]:
    """Every flag and how its change comes into force, for a person."""
    named = {key: f"--{flag_name(key)}" if key in FLAGS else f"[[{key}]]" for key in KEYS}
    width = max(map(len, named.values()))
    return [f"{name:{width}}  {HOW.get(key, How.RESTART)}" for key, name in named.items()]


def _changes(key: str, before: Settings, after: Settings) -> list[Change]:
    """What has changed of a key: of tables with the same names, key by key."""
    how = _how(key, before, after)
    old, new = before.models, after.models
    if key != "models" or [m.name for m in old] != [m.name for m in new]:
        return [Change(key, _text(key, before), _text(key, after), how)]
    return [
        Change(key, _plain(was), _plain(now), how, f"{table.name}.{field}")
        for table, other in zip(old, new, strict=True)
        for field in ModelEntry.__struct_fields__
        if (was := getattr(table, field)) != (now := getattr(other, field))
    ]


def _how(key: str, before: Settings, after: Settings) -> How:
    values = getattr(before, key), getattr(after, key)
    if key == "workers" and "auto" in values:
        return How.HANDOVER  # what `auto` means is found, maybe measured, at a start
    if key == "idle_timeout_s" and 0 in values:
        return How.HANDOVER  # it may decide who says how many workers there are: found at a start
    if key == "state_cache" and 0 in (before.state_cache_bytes, after.state_cache_bytes):
        return How.HANDOVER  # workers without a store have no links for states
    if key == "keys_file" and _folder(after) not in (None, _folder(before)):
        return How.HANDOVER  # a gateway is confined to the folder that it was started with
    return HOW.get(key, How.RESTART)


def _folder(settings: Settings) -> PurePath | None:
    return None if settings.keys_file is None else PurePath(settings.keys_file).parent


def _text(key: str, settings: Settings) -> str:
    value = getattr(settings, key)
    if key in SECRET:
        return "none" if value is None else "one that is not shown"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(one.name if isinstance(one, ModelEntry) else str(one) for one in value)
    return repr(value) if value == "" else "default" if value is None else str(value)
