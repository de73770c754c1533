"""Whether requests are welcome, as far as HTTP has to tell: who knows it."""

from __future__ import annotations

from typing import Protocol


class Door(Protocol):
    """The gateway as a whole."""

    @property
    def closing(self) -> bool:
        """Whether a connection's next answer is its last."""

    def not_ready(self) -> str | None:
        """Why a request that comes now might find no worker; None: all is well."""
