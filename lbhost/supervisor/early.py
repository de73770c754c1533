"""Signals that come before the loop takes over, while the model and the box are looked at.

Stop signals end us like Ctrl-C does: by way of the clean-up. A reload or an upgrade is kept until
the server serves.
"""

from __future__ import annotations

import signal
from types import FrameType

from lbhost.linux import STOP_SIGNALS, has_terminal


class EarlySignals:
    """See the module.

    What a handler raises is dropped where C code calls Python: llama.cpp's log, while a model is
    read. So the signal is noted as well.
    """

    def __init__(self) -> None:
        self.orders: list[int] = []
        """Reloads and upgrades that were asked for, oldest first."""
        self._asked = False
        self._had_terminal = has_terminal()
        for number in (*STOP_SIGNALS, signal.SIGUSR2):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raises KeyboardInterrupt if one has asked to stop."""
        if self._asked:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        hung_up = number == signal.SIGHUP and self._had_terminal and not has_terminal()
        if number in (signal.SIGHUP, signal.SIGUSR2) and not hung_up:
            self.orders.append(number)
            return
        self._asked = True
        raise KeyboardInterrupt
