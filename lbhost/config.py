"""Every setting, where it comes from, and how it is checked.

A flag beats an environment variable (`LBHOST_<KEY>`) beats a key in lbhost.toml beats the
default here. Pure but for reading the one file; knows nothing of argv.
"""

from __future__ import annotations

import difflib
import enum
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from lbhost.errors import UsageError


class Policy(enum.StrEnum):
    """How the gateway picks a worker. See gateway/scheduling/policy.py."""

    COST = "cost"
    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"
    RANDOM_TWO = "random-two"
    IDLE_CPU = "idle-cpu"


class LogFormat(enum.StrEnum):
    """`auto` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """Least severe level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Count = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(ge=0.001, le=86400)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of lbhost's settings. A field's name is its key in lbhost.toml.

    `--like-this` is its flag and `LBHOST_LIKE_THIS` its environment variable.
    """

    model: Annotated[str, Meta(min_length=1)] = "starter"
    """GGUF file, `starter` (from the starter extra), or hf:REPO[:FILE] (needs the hub extra)."""

    alias: str | None = None
    """Name that clients use for the model; default: the file's name without .gguf."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address to listen on."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """TCP port to listen on; 0 picks a free one."""

    api_key: Annotated[str, Meta(min_length=8, max_length=512)] | None = None
    """If set, requests must carry `Authorization: Bearer KEY` (health checks need not)."""

    allowed_hosts: str = ""
    """Host names that requests may carry, comma-separated, beside addresses, localhost and --host;
    `*` allows any. Without it only servers on a loopback address check."""

    allowed_origins: str = ""
    """Origins of web pages that may use the server, comma-separated (https://app.example); `*`
    allows any. Pages of the server's own origin always may."""

    workers: Count | str = "auto"
    """How many workers; `auto`: one per physical core this process may use, or per GPU."""

    threads_per_worker: Annotated[int, Meta(ge=1, le=256)] = 1
    """CPU threads of each worker; more than one makes a worker span several cores."""

    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    """Sequences that each worker runs at once."""

    ctx_size: Annotated[int, Meta(ge=64, le=1_048_576)] | None = None
    """Tokens per slot, prompt and output together; default: what the memory allows."""

    policy: Policy = Policy.COST
    """How a request's worker is chosen."""

    runtime_dir: str | None = None
    """Folder (mode 0700) for admin.sock; default under XDG_RUNTIME_DIR."""

    inter_token_target_ms: Annotated[int, Meta(ge=10, le=10_000)] = 150
    """Prefill is cut into chunks so that a step with running streams stays under this."""

    queue_size: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Requests that may wait for a worker; one more is answered 429."""

    queue_timeout_s: Seconds = 60.0
    """How long a request may wait for a worker before it is answered 503."""

    request_timeout_s: Seconds = 600.0
    """How long a request may take from arrival to its last token."""

    shutdown_grace_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """How long running requests may go on after SIGTERM or Ctrl-C."""

    max_connections: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    """Client connections at once."""

    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 4 * 1024 * 1024
    """Largest request body."""

    max_header_bytes: Annotated[int, Meta(ge=1024, le=1 << 20)] = 16 * 1024
    """Largest request line and headers together."""

    header_timeout_s: Seconds = 10.0
    """How long a client may take to send its headers."""

    body_timeout_s: Seconds = 30.0
    """How long a client may take to send its body."""

    keep_alive_s: Seconds = 75.0
    """How long an idle connection stays open."""

    warm_c: Annotated[float, Meta(ge=30, le=120)] = 80.0
    """Core temperature above which a worker gets less work."""

    hot_c: Annotated[float, Meta(ge=31, le=125)] = 95.0
    """Core temperature at which a worker rests."""

    nice: Annotated[int, Meta(ge=0, le=19)] = 5
    """Niceness of the workers, so that accepting and streaming never wait for a decode."""

    restart_budget: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Restarts of one worker within restart_window_s; one more crash and it is FAILED."""

    restart_window_s: Seconds = 60.0
    """See restart_budget."""

    log_format: LogFormat = LogFormat.AUTO
    """Text for people or JSON for machines."""

    log_level: LogLevel = LogLevel.INFO
    """Least severe messages to write."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, str) and self.workers != "auto":
            raise ValueError(f"workers is 'auto' or a number from 1 to 1024, not {self.workers!r}")
        if self.hot_c <= self.warm_c:
            raise ValueError(f"hot_c ({self.hot_c:g}) must be above warm_c ({self.warm_c:g})")


KEYS: tuple[str, ...] = Settings.__struct_fields__


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
        values[key], origin[key] = value, f"LBHOST_{key.upper()}"
    for key, value in flags.items():
        values[key], origin[key] = value, "--" + flag_name(key)
    hints = get_type_hints(Settings, include_extras=True)
    for key, value in values.items():
        values[key] = _checked(key, value, hints, origin[key])
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"settings do not fit together: {error}") from error


def flag_name(key: str) -> str:
    """`shutdown_grace_s` is `--shutdown-grace`: flags drop the unit."""
    name = key.removesuffix("_s").removesuffix("_ms").removesuffix("_c")
    return name.replace("_", "-")


def nearest(word: str, known: tuple[str, ...]) -> str:
    """ " Did you mean X?" for an error message, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _checked(key: str, value: Any, hints: Mapping[str, Any], where: str) -> Any:
    """The value in its field's type. Raises UsageError."""
    if key not in hints:
        raise UsageError(f"{where}: unknown key{nearest(key, KEYS)}")
    try:
        if key == "workers":
            # As a number first: to `int | str` the text "3" is a good text.
            return value if value == "auto" else msgspec.convert(value, Count, strict=False)
        return msgspec.convert(value, hints[key], strict=False)
    except msgspec.ValidationError as error:
        reason = _reason(key, hints[key], error)
        raise UsageError(f"{where}: {reason}, got {value!r}") from error


def _reason(key: str, hint: Any, error: msgspec.ValidationError) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "expected one of " + ", ".join(str(choice.value) for choice in hint)
    words = str(error).partition(", got ")[0].replace("`", "")
    words = words.replace("Expected", "expected").replace("float", "number")
    return f"{words} or 'auto'" if key == "workers" else words


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


_NOT_SETTINGS = {"LBHOST_CONFIG", "LBHOST_SYSFS_ROOT", "LBHOST_PROCFS_ROOT", "LBHOST_TUI"}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith("LBHOST_") and name not in _NOT_SETTINGS:
            values[name.removeprefix("LBHOST_").lower()] = value
    return values


def default_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Where admin.sock lives unless told otherwise: one folder per user."""
    base = environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "lbhost"
    return Path("/tmp") / f"lbhost-{os.getuid()}"
