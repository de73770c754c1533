"""Where settings come from: a flag beats an environment variable (`LBHOST_<KEY>`) beats a key in
lbhost.toml beats the default in config.py. Pure but for reading that file; knows nothing of argv.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from lbhost import adapters, regular_file
from lbhost.config import OF_ONE_MODEL, SECRET, Settings, flag_name
from lbhost.errors import UsageError
from lbhost.model_entry import ModelEntry, entries
from lbhost.setting_values import checked

MAX_FILE_BYTES = 1 << 20
"""Of a configuration file."""


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_file: Path | None = None
) -> Settings:
    """Settle every setting from its sources.

    Args:
        flags: given flags by key; keys that were not given are absent.
        environ: usually os.environ.
        config_file: lbhost.toml; default: $LBHOST_CONFIG, if set.

    Raises:
        UsageError: unknown key, wrong type or range, unreadable file; one line saying where.
    """
    if config_file is None and environ.get("LBHOST_CONFIG"):
        config_file = Path(environ["LBHOST_CONFIG"])
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in (_from_file(config_file) if config_file else {}).items():
        values[key], origin[key] = value, f"{config_file}: {key}"
    for key, value in _from_environ(environ).items():
        values[key], origin[key] = value, _variable(key)
    for key, value in flags.items():
        values[key], origin[key] = value, "--" + flag_name(key)
    tables = (
        values.pop("models", None)
        if origin.get("models", "").startswith(f"{config_file}:")
        else None
    )
    hints = get_type_hints(Settings, include_extras=True)
    del hints["models"]
    for key, value in values.items():
        if key == "adapters":
            values[key] = adapters.parse(value, origin[key])
        else:
            where, in_environ = origin[key], origin[key] == _variable(key)
            if key == "models":
                raise UsageError(
                    f"{where}: models are tables: write them into the file of --config"
                )
            spelt = _variable if in_environ else str
            values[key] = checked(key, value, hints, where, secret=key in SECRET, spelt=spelt)
    if tables is not None:
        values["models"] = entries(tables, str(config_file), set(hints) - set(OF_ONE_MODEL))
        if both := next((key for key in OF_ONE_MODEL if key in values), None):
            raise UsageError(
                f"{origin[both]}: [[models]] of {config_file} names the models: leave this out"
            )
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        where = _sources(str(error), _given(str(error), values, origin), config_file)
        raise UsageError(f"{where}{error}") from error


def _variable(key: str) -> str:
    return f"LBHOST_{key.upper()}"


def _given(message: str, values: Mapping[str, Any], origin: Mapping[str, str]) -> Mapping[str, str]:
    """The places of the settings that a message can be about: of one model not those that its table
    has of its own."""
    table = re.match(r"models\[(\d+)\]", message)
    if table is None:
        return origin
    entry: ModelEntry = values["models"][int(table[1])]
    return {key: place for key, place in origin.items() if getattr(entry, key, None) is None}


def _sources(message: str, origin: Mapping[str, str], file: Path | None) -> str:
    """Where the settings that a message names come from: the file, a variable or a flag each."""
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", message)  # what somebody has written names none
    named = set(re.findall(r"\w+", unquoted))
    found = {
        str(file) if place.startswith(f"{file}: ") else place
        for key, place in origin.items()
        if key in named
    }
    return "".join(f"{place}: " for place in [", ".join(sorted(found))] if found)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(regular_file.content(path, MAX_FILE_BYTES).decode())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such configuration file") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deep") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror or error}") from error
    except ValueError as error:  # tomllib: also of a number of over 4,300 digits
        raise UsageError(f"{path}: {error}") from error


_NOT_SETTINGS = {
    "LBHOST_CONFIG",
    "LBHOST_SYSFS_ROOT",
    "LBHOST_PROCFS_ROOT",
    "LBHOST_TUI",
    "LBHOST_HANDOVER_FD",
}


_SERVICE_LINKS = (
    (r"SERVICE_HOST|PORT_\d+_(TCP|UDP|SCTP)_ADDR", r"\d+(\.\d+){3}|[0-9a-f]*:[0-9a-f:]*"),
    (r"SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)_PORT", r"\d+"),
    (r"PORT_\d+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    (r"PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://\S+:\d+"),
)
"""What follows LBHOST_ or LBHOST_SOMETHING_ in a name, and what its value is."""


def _service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service called lbhost or lbhost-something.

    It puts those into every container of the namespace. Name and value must both have the
    form, so that a mistyped setting is still refused.
    """
    return any(
        re.fullmatch(rf"LBHOST_(\w+_)?({names})", name) and re.fullmatch(values, value)
        for names, values in _SERVICE_LINKS
    )


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environ.items():
        if not name.startswith("LBHOST_") or name in _NOT_SETTINGS:
            continue
        if not _service_link(name, value):
            values[name.removeprefix("LBHOST_").lower()] = value
    return values
