"""What huggingface_hub writes while it asks again, which takes it half a minute: one line of ours.

It warns twice for each try, twelve lines before the error that says all.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

_OF_TRIES = ("thrown while requesting", "Retrying in")
"""In each of those warnings (2.4)."""


class _Once(logging.Filter):
    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(words in record.getMessage() for words in _OF_TRIES):
            return True
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError):  # nobody reads it
                sys.stderr.write(
                    f"lbhost: {self._what}: the hub does not answer as it should; trying again\n"
                )
        return False


@contextlib.contextmanager
def told_once(what: str) -> Iterator[None]:
    """Until its end the warnings about tries are one line, about `what`; others stay."""
    once = _Once(what)
    handlers = logging.getLogger("huggingface_hub").handlers[:]
    for handler in handlers:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(once)
