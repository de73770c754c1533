"""Structured logs on stderr: readable on a terminal, JSON for machines.

Every process calls `configure` once. A log line never holds a prompt or an answer.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from lbhost.choices import LogFormat, LogLevel


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Imports find no such module meanwhile, unless it is there already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


# structlog would draw tracebacks with rich, which `configure` leaves to nobody: importing it takes
# every process 75 ms of CPU time, a sixth of what a new gateway imports.
with _without("rich"):
    import structlog

_as_text = True
_level = logging.INFO
_renderer: Any = structlog.processors.JSONRenderer()


def configure(form: LogFormat, level: LogLevel, process: str) -> None:
    """Set up structlog for this process; `process` names it in every line ("worker 0")."""
    global _as_text, _level, _renderer
    as_text = form is LogFormat.TEXT or (form is LogFormat.AUTO and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        if as_text
        else structlog.processors.JSONRenderer()
    )
    _as_text, _level, _renderer = as_text, logging.getLevelNamesMapping()[level.upper()], renderer
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def get() -> Any:
    """A logger. `get().info("worker ready", worker=0)`."""
    return structlog.get_logger()


_NOT_RELAYED = frozenset({"exc_info", "stack", "stack_info"})
"""Fields that mean something to a renderer, of this process."""


def relay(fields: Mapping[str, Any], level: str, process: str) -> None:
    """Write another process's log line as one of our log, if that is to have its level.

    Args:
        fields: as that process's JSON has them; none is trusted.
        level: what it was written as.
        process: whose it is.
    """
    if logging.getLevelNamesMapping().get(level.upper(), logging.INFO) < _level:
        return
    told = {key: value for key, value in fields.items() if key not in _NOT_RELAYED}
    told |= {"level": level or "info", "process": process}
    if _as_text:
        trace = str(told.pop("exception", ""))
        told = {_printable(key): _printable(str(value)) for key, value in told.items()}
        told["timestamp"] = _local(told.get("timestamp"))
        if trace:
            told["exception"] = "\n".join(map(_printable, trace.split("\n")))
    sys.stderr.write(f"{_renderer(None, '', told)}\n")


def pass_on(line: str) -> None:
    """Write a printable line that is nobody's log."""
    sys.stderr.write(f"{line}\n")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _local(timestamp: str | None) -> str:
    try:
        return f"{datetime.fromisoformat(str(timestamp)).astimezone():%H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{datetime.now().astimezone():%H:%M:%S}"
