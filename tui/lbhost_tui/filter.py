"""What the filter lets through. Pure.

A filter is words; all must match. A number means a worker's id, core or pid; any other word
is looked for, without regard to case, in what the screen says about the thing.
"""

from __future__ import annotations

from lbhost.status import Event, LogLine, RequestStatus, WorkerStatus


class Filter:
    """A parsed filter; an empty one lets everything through."""

    def __init__(self, text: str = "") -> None:
        self.text = text.strip()
        self._words = self.text.lower().split()

    def __bool__(self) -> bool:
        return bool(self._words)

    def worker(self, worker: WorkerStatus) -> bool:
        """Whether this worker is shown."""
        place = f"gpu{worker.gpu}" if worker.gpu is not None else "cpu"
        facts = (worker.state, worker.wanted, place, worker.model, worker.last_exit or "")
        text = f"worker {' '.join(facts)}".lower()
        numbers = {str(number) for number in (worker.id, *worker.cores, worker.pid)}
        return all(word in numbers if word.isdecimal() else word in text for word in self._words)

    def request(self, request: RequestStatus) -> bool:
        """Whether this request is shown. A number means one of its workers."""
        who = request.key or "no key"
        text = f"{request.id} {request.model} {who} {request.tier} {request.state}".lower()
        numbers = {str(number) for number in request.workers}
        return all(
            word in numbers or word in request.id.lower() if word.isdecimal() else word in text
            for word in self._words
        )

    def log_line(self, line: LogLine) -> bool:
        """Whether this line of a worker's log is shown."""
        text = f"{line.level or 'output'} {line.message}".lower()
        return all(word in text for word in self._words)

    def event(self, event: Event) -> bool:
        """Whether this event is shown."""
        who = "" if event.worker is None else f"worker {event.worker}"
        text = f"{who} {event.level} {event.kind} {event.message}".lower()
        return all(
            word == str(event.worker) or word in event.message.lower().split()
            if word.isdecimal()
            else word in text
            for word in self._words
        )
