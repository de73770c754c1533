"""Which worker ids are taken: small integers, one for each row of the board, over all models.

An id and an epoch name one process for ever: an id that is given again goes on counting, whoever
has it then.
"""

from __future__ import annotations


class WorkerIds:
    """The ids of one board."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._taken: set[int] = set()
        self._epochs: dict[int, int] = {}

    def free(self, count: int) -> list[int]:
        """So many ids that nobody has, the lowest ones; fewer where there are not so many."""
        return [i for i in range(self.rows) if i not in self._taken][:count]

    def take(self, worker: int) -> int:
        """Somebody has this id from now on. Its last epoch; 0 if it never had one."""
        assert worker not in self._taken, f"worker {worker} is there already"
        self._taken.add(worker)
        return self._epochs.get(worker, 0)

    def began(self, worker: int, epoch: int) -> None:
        """It has come to this epoch."""
        self._epochs[worker] = epoch

    def give_back(self, worker: int) -> None:
        """Nobody has this id any more."""
        self._taken.remove(worker)
