"""One request and what became of it, as log and metrics see it.

Whoever refuses or answers a request writes here; `end` counts it and writes its one log line.
Owns neither the connection nor the work. Never holds what was asked or answered.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Protocol

from lbhost import log
from lbhost.errors import LbhostError, QueueFullError
from lbhost.gateway.account import Account
from lbhost.gateway.recorder import outcome
from lbhost.gateway.scheduling.fairness import may_wait

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_LONGEST_PATH = 200


class Counter(Protocol):
    """Who counts ended requests. See recorder.py."""

    def count(self, what: str) -> None: ...
    def refused(self, error: LbhostError) -> None: ...


class Hold(Protocol):
    """What a request's body takes from the memory for bodies. See http/budget.py."""

    def release(self) -> None: ...


class Exchange:
    """One request from its head to the end of its answer."""

    def __init__(
        self,
        counter: Counter,
        body: Hold,
        method: str = "",
        path: str = "",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Made when the head is complete: that is the time of arrival."""
        self.counter = counter
        """Who counts it: its model's, once that is known."""
        self.body = body
        """To be released as soon as nobody needs the body's bytes any more."""
        self.method = method
        self.path = path[:_LONGEST_PATH]
        self.began = time.monotonic()
        """Deadline and time to first token count from then."""
        self.complete: float | None = None
        """When all of the request was here: its place in the queue counts from then."""
        self.request_id = request_id_of(headers or [])
        self.scope = 0
        """Whose request it is; see wire.Submit."""
        self.account: Account | None = None
        """Of the API key that it came with."""
        self.others = 0
        """Connections that had a request when it came, beside its own."""
        self.connections: int | None = None
        """That there may be; None: nobody counts them."""
        self.model = ""
        """Which model it is for, where several are served."""
        self.status: int | None = None
        """Of the answer, once there is one."""
        self.error: LbhostError | None = None
        """Why it was refused or failed."""
        self.ended_as: str | None = None
        """The outcome of work that was asked for; None: there was none."""
        self.details: dict[str, object] = {}
        """More fields for the log line."""
        self._entered = False
        self._over = False

    @property
    def client(self) -> str:
        """The name of its API key; empty: it has none."""
        return "" if self.account is None else self.account.name

    def enter(self, account: Account) -> None:
        """It came with this account's key.

        Raises QueueFullError: requests of that key have their share of the connections: without
        one, who sends a thousand bodies slowly keeps everybody else out.
        """
        self.account = account
        most = self.connections
        if account.name and most is not None and not may_wait(account.open, self.others, most):
            raise QueueFullError(
                f"{account.open} requests of this API key are open already, and there may be "
                f"{most} connections",
                retry_after_s=1.0,
            )
        account.open += 1
        self._entered = True

    def fail(self, error: LbhostError) -> None:
        """It gets this error for an answer."""
        self.status = error.status
        self.error = error

    def end(self) -> None:
        """Count it, log it. Pages that were answered well are neither counted nor logged."""
        if self._over:
            return
        self._over = True
        self.body.release()
        if self._entered and self.account is not None:
            self.account.open -= 1
        if self.error is not None:
            self.ended_as = outcome(self.error)
            self.counter.refused(self.error)
        if self.ended_as is None:
            return
        self.counter.count(self.ended_as)
        more: dict[str, object] = {}
        if self.client:
            more["key"] = self.client
        if self.model:
            more["model"] = self.model
        if self.error is not None:
            more["reason"] = self.error.reason
        log.get().info(
            "request",
            id=self.request_id,
            method=self.method,
            path=self.path,
            outcome=self.ended_as,
            status=self.status,
            duration_ms=milliseconds(time.monotonic() - self.began),
            **more,
            **self.details,
        )


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's own x-request-id if it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return "req_" + secrets.token_hex(12)


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
