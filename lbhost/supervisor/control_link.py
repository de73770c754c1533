"""One control link as the supervisor's loop sees it; see message_link.py."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from lbhost import control, log
from lbhost.supervisor.message_link import MessageLink


class ControlLink(MessageLink[control.Control]):
    """The supervisor's end. `on_message` gets each packet, `on_end` is called once at its end."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[control.Control], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(end, control.receive, on_message, on_end, "control link broken")

    def send(self, message: control.Control, fds: Sequence[int] = ()) -> bool:
        """Send a message; False if the other side is gone or so stuck that its link is full.

        Nothing else is done about it: the process's end or its lack of progress is noticed
        elsewhere.
        """
        if not self._open:
            return False
        try:
            control.send(self._socket, message, fds)
        except OSError as error:
            log.get().debug("control link", message=type(message).__name__, error=str(error))
            return False
        return True
