"""`lbhost keys`: make API keys, and list what there is."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from rich.table import Table

from lbhost import keys, setting_sources
from lbhost.cli.app import ConfigFile, app, console
from lbhost.errors import LbhostError, UsageError

KeysFile = Annotated[
    str | None,
    Parameter(name="--keys-file", help="The file; default: as for serve.", show_default=False),
]

commands = cyclopts.App(name="keys", help="Make API keys, and list what there is.")
app.command(commands)


@commands.command
def new(name: str, /, *, keys_file: KeysFile = None, file: ConfigFile = None) -> None:
    """Make a key, print it once, and add its hash to the keys file.

    A running server takes it within a second. Limits are set in the file, which says how.
    """
    path = _path(keys_file, file)
    key = keys.PREFIX + secrets.token_urlsafe(keys.RANDOM_BYTES)
    try:
        keys.add(path, name, key)
    except OSError as error:
        raise LbhostError(f"keys file {path}: {error.strerror or error}") from error
    print(f"{name} may use the server with this key, which is shown only now:", file=sys.stderr)
    print(key)


@commands.command(name="list")
def list_keys(*, keys_file: KeysFile = None, file: ConfigFile = None) -> None:
    """A line for each key of the file: its name and its limits."""
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("NAME", "REQUESTS/MIN", "TOKENS/MIN", "AT ONCE", "TIER", "WEIGHT", "MODELS"):
        table.add_column(column)
    for key in keys.read(_path(keys_file, file)):
        highest = key.highest_service_tier
        tier = key.service_tier if highest is None else f"{key.service_tier} to {highest}"
        table.add_row(
            key.name,
            _limit(key.requests_per_minute),
            _limit(key.tokens_per_minute),
            _limit(key.max_concurrent),
            tier,
            f"{key.weight:g}",
            "all" if key.models is None else ", ".join(key.models),
        )
    console().print(table)


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)


def _path(keys_file: str | None, file: str | None) -> Path:
    flags = {} if keys_file is None else {"keys_file": keys_file}
    settings = setting_sources.load(flags, os.environ, Path(file) if file else None)
    if settings.keys_file is None:
        raise UsageError("which keys file? --keys-file, LBHOST_KEYS_FILE or --config says it")
    return Path(settings.keys_file)
