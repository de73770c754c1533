"""A conversation with the model, for a first try in the terminal."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

from cyclopts import Parameter

from lbhost import setting_sources
from lbhost.cli.app import RuntimeDir, app, where
from lbhost.client import AdminClient
from lbhost.errors import UsageError


@app.command
def chat(
    *,
    url: Annotated[
        str | None,
        Parameter(help="The server; default: the one on the runtime dir.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, Parameter(help="What the model is told first.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="Who answers, where there are several.", show_default=False),
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Talk with the model in this terminal.

    Ctrl-C stops an answer, Ctrl-D ends. Without a terminal every line of the input is a message.
    LBHOST_API_KEY holds the key, if the server asks for one.
    """
    from lbhost.conversation import Conversation, talk

    url = server_url(url, runtime_dir)
    if system is not None and not _is_text(system):
        raise UsageError("--system: the text is not UTF-8")
    key = setting_sources.load({}, os.environ).api_key
    with Conversation(url, key=key, system=system, model=model) as conversation:
        talk(conversation, interactive=sys.stdin.isatty())


def _is_text(given: str) -> bool:
    """Whether it came as UTF-8: other bytes of an argument are half surrogate pairs."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


def server_url(given: str | None, runtime_dir: str | None) -> str:
    """Where the server answers: as `--url` says, or the one on the runtime dir.

    Raises UsageError, ServerGoneError.
    """
    if given is None:
        with AdminClient(where(runtime_dir)) as client:
            return client.status().endpoint
    if not re.match("https?://[^/]", given):
        raise UsageError(f"--url: expected something like http://127.0.0.1:8080, got {given!r}")
    return given
