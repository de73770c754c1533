"""What a worker's process writes to its standard output and error, as lines. Pure.

A process that a bad model or a stranger's request has taken over may write anything: what comes
of it here is short, printable and harmless to a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

LONGEST = 2000
"""Characters of a line."""
LONGEST_PARTIAL = 64 * 1024
"""Bytes that may come without an end of line."""
MOST_LINES = 100
"""Of a traceback; its last ones."""
MOST_FIELD = 200
"""Bytes of a field that is a list or an object; a longer one is told as text: none is nested deeper
than whoever writes it out can follow."""
LEVELS = ("debug", "info", "warning", "error", "critical")


class Written(msgspec.Struct, frozen=True):
    """What was written at once: a log line of ours, or a line of anybody's."""

    level: str
    """One of LEVELS, or empty: nothing says."""
    lines: tuple[str, ...]
    """For people, the first one first."""
    fields: Mapping[str, Any] | None = None
    """Of a log line of ours, as structlog has written it."""


class Splitter:
    """Bytes as they come, lines as they end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end with these bytes. One that is far too long ends where it is."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_PARTIAL:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[bytes]:
        """What has come after the last one's end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def read(line: bytes) -> Written | None:
    """One line of the process; None if nothing is on it."""
    text = line.decode(errors="replace").rstrip()
    if not text:
        return None
    fields = _fields(text)
    if fields is None:
        return Written("", (harmless(text),))
    level = fields.get("level")
    said = str(fields["event"])
    known = {"event", "level", "timestamp", "process", "exception"}
    more = "".join(f" {key}={value}" for key, value in fields.items() if key not in known)
    lines = [said + more, *str(fields.get("exception", "")).splitlines()[-MOST_LINES:]]
    shown = tuple(harmless(one) for one in lines if one.strip())
    return Written(level if level in LEVELS else "", shown, fields)


def _fields(text: str) -> dict[str, Any] | None:
    """Those of a log line of ours; None if it is none."""
    if not text.startswith("{"):
        return None
    try:
        found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        fields = {key: _value(bytes(raw)) for key, raw in found.items()}
    except (msgspec.DecodeError, RecursionError):
        return None
    return fields if isinstance(fields.get("event"), str) else None


def _value(raw: bytes) -> Any:
    """Raises msgspec.DecodeError."""
    if raw[:1] in (b"[", b"{") and len(raw) > MOST_FIELD:
        return raw.decode(errors="replace")
    return msgspec.json.decode(raw)


def harmless(text: str) -> str:
    """As a terminal may show it: what would move its cursor, or more, is written out."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else _written_out(c) for c in cut)


def _written_out(char: str) -> str:
    if char == "\t":
        return "    "
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
