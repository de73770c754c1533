"""A terminal in which `lbhost chat` runs."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

from serving import wait_for


class Terminal:
    """`lbhost chat` with a person at the keyboard. A context manager."""

    def __init__(self, key: str, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lbhost", "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "LBHOST_API_KEY": key, "TERM": "dumb"},
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self.screen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def sees(self, pattern: str) -> None:
        """Wait for it, and forget what came before its end."""

        def probe() -> bool:
            try:
                self.screen += os.read(self._ours, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.01)
            found = re.search(pattern, self.screen)
            if found:
                self.screen = self.screen[found.end() :]
            return found is not None

        wait_for(probe, f"the terminal shows {pattern!r}")
