"""Whether a model has room for more workers beyond cores: rows of the board, and memory. Changes
nothing."""

from __future__ import annotations

from lbhost.board import Board
from lbhost.errors import ConflictError, InvalidRequestError
from lbhost.placement.memory import gib
from lbhost.supervisor.fork_servers import ForkServers
from lbhost.supervisor.worker_ids import WorkerIds


class Room:
    """Called with how many more workers than now there are to be."""

    def __init__(
        self, board: Board, ids: WorkerIds, fork_servers: ForkServers, worker_bytes: int
    ) -> None:
        self._board = board
        self._ids = ids
        self._fork_servers = fork_servers
        self._worker_bytes = worker_bytes

    def __call__(self, more: int) -> None:
        """Raises InvalidRequestError or ConflictError if rows or memory do not suffice."""
        if len(self._ids.free(max(0, more))) < more:
            most = self._ids.rows
            raise InvalidRequestError(f"this server has room for {most} workers", param="workers")
        host = self._board.host.read(0)
        on_gpu = not self._fork_servers.all()
        if more <= 0 or on_gpu or host is None or host.memory_available is None:
            return
        need = more * self._worker_bytes
        if need > host.memory_available:
            raise ConflictError(
                f"{more} more workers need {gib(need)} of memory, "
                f"{gib(int(host.memory_available))} are available"
            )
