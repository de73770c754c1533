"""Where the admin API is found: the socket in the runtime dir, also after that was taken away.

Owns the server of the API and its place. A cleaner of temporary files or a log-out may remove
the path under a running server, which nobody could then stop, drain or even look at.
"""

from __future__ import annotations

from lbhost.errors import StartupError
from lbhost.supervisor.admin import Admin, AdminServer
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.runtime import RuntimeDir


class AdminSocket:
    """Serves the admin API at the runtime dir's path, for as long as the server runs."""

    def __init__(self, admin: Admin, runtime: RuntimeDir, events: EventLog) -> None:
        self._admin = admin
        self._runtime = runtime
        self._events = events
        self._server: AdminServer | None = None
        self._wanted = False
        """Whether it is to be served, even if it could not be made."""
        self._refusal = ""
        """Why the path is not ours now, as told last."""

    async def start(self) -> None:
        """Serve from now on.

        Raises:
            StartupError: the socket cannot be made; `look_again` tries again.
        """
        self._wanted = True
        self._server = AdminServer(self._admin, self._runtime.listen())
        await self._server.start()

    async def stop(self) -> None:
        """Close everything; clients get a second to take their last bytes."""
        self._wanted = False
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    async def look_again(self) -> None:
        """If the path leads elsewhere or nowhere, make it lead here again, and tell of it."""
        if not self._wanted or self._runtime.is_reachable():
            return
        try:
            listener = self._runtime.listen_again()
        except StartupError as error:
            if error.message != self._refusal:  # once, not at every look
                self._refusal = error.message
                text = f"this server cannot be administered: {error.message}"
                self._events.add("error", "server", text)
            return
        if self._server is None:
            self._server = AdminServer(self._admin, listener)
            await self._server.start()
            text = f"listening at {self._runtime.socket_path} now"
        else:
            await self._server.move(listener)
            text = f"{self._runtime.socket_path} was taken away; listening there again"
        self._refusal = ""
        self._events.add("warning", "server", text)
