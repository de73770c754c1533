"""Says once when the folder of `--state-dir` is taken away under a running server.

Else nobody hears of it before the server ends, and then all that was computed is lost. Changes
nothing: the gateway may write in no other folder, nor in a new one of the same name.
"""

from __future__ import annotations

import os
import threading

from lbhost.config import Settings
from lbhost.supervisor.events import EventLog


class StateFolder:
    """Looks whether the folder is still the one that the server began with."""

    def __init__(self, settings: Settings, events: EventLog) -> None:
        """`settings`: the server's first ones; with another folder it is another server."""
        self._path = None if settings.state_cache_bytes == 0 else settings.state_dir
        self._events = events
        self._began_with = self._seen = None if self._path is None else _identity(self._path)
        self._gone = False
        self._thread: threading.Thread | None = None

    @property
    def warnings(self) -> list[str]:
        """What does not work now and what to do, for the status."""
        if not self._gone:
            return []
        return [
            f"the state dir {self._path} was removed or replaced: KV states are in memory only "
            "and are lost when the server stops; restart it when convenient (`lbhost upgrade` "
            "makes the folder anew and keeps them)"
        ]

    def look(self) -> None:
        """Tell of what the last look has found, and look again: by a thread of its own, since a
        disk that hangs must not hold the supervisor up."""
        if self._path is None or (self._thread is not None and self._thread.is_alive()):
            return
        gone = self._seen is None or self._seen != self._began_with
        if gone != self._gone:
            self._gone = gone
            if gone:
                self._events.add("warning", "server", self.warnings[0])
            else:
                text = f"the state dir {self._path} is there again: KV states are kept in it"
                self._events.add("info", "server", text)
        thread = threading.Thread(
            target=self._see, args=(self._path,), name="lbhost state dir", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the box has no thread for it now: no reason to end the supervisor
            return
        self._thread = thread

    def _see(self, path: str) -> None:
        self._seen = _identity(path)


def _identity(path: str) -> tuple[int, int] | None:
    """What a folder is, whatever it is called; None: it is not there, or cannot be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino
