"""What the operator can order, in the admin API's terms and in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lbhost.status import RequestStatus, Status, WorkerStatus
from lbhost_tui import format as fmt

ONE_TIMEOUT_S = 660.0
"""A drain waits for requests that may run for request_timeout_s (600 by default)."""

ALL_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Action:
    """One order. With a question it stops work and must be confirmed first."""

    name: str
    """"drain worker 1": what notifications call it."""
    path: str
    body: Mapping[str, int | str] = field(default_factory=dict)
    method: str = "POST"
    timeout_s: float = ONE_TIMEOUT_S
    verb: str = ""
    """What the confirming button says."""
    keep: str = "Cancel"
    """What the other one says."""
    question: str = ""
    consequence: str = ""


def _requests(count: int) -> str:
    return "1 running request" if count == 1 else f"{count} running requests"


def _busy(worker: WorkerStatus) -> int:
    return max(worker.in_flight, worker.slots_busy)


def _counted(status: Status, model: str | None = None) -> list[WorkerStatus]:
    """The workers, or one model's, less the spare that a rolling restart has started."""
    return [w for w in status.workers if not w.spare and model in (None, w.model)]


def _last_one(status: Status, worker: WorkerStatus) -> str:
    """A warning when no other worker would be left for new requests."""
    same = [w for w in status.workers if w.id != worker.id and w.model == worker.model]
    if any(w.state == "ready" for w in same):
        return ""
    whose = f" of {worker.model}" if len(status.models) > 1 else ""
    return f" No other worker{whose} is ready: new requests will wait."


def drain(status: Status, worker: WorkerStatus, timeout_s: int | None = None) -> Action:
    """Finish what runs, within so many seconds if they are given, then stop and stay down."""
    within = "" if timeout_s is None else f" for {timeout_s} s"
    ends = f"Its {_requests(_busy(worker))} may finish{within}" if _busy(worker) else "It is idle"
    return Action(
        name=f"drain worker {worker.id}",
        path=f"/workers/{worker.id}/drain",
        body={} if timeout_s is None else {"timeout_s": timeout_s},
        verb="Drain",
        question=f"Drain worker {worker.id}?",
        consequence=f"{ends}; then it stops until you resume it.{_last_one(status, worker)}",
    )


def quit_server(status: Status) -> Action:
    """End the dashboard that started the server, and so the server. Sent to nobody."""
    busy = status.traffic.in_flight + status.traffic.queue_depth
    ends = f"Its {_requests(busy)} may finish for a while" if busy else "It is idle"
    return Action(
        name="quit",
        path="",
        verb="Stop it",
        question="Quit and stop the server?",
        consequence=f"{ends}; then it is gone. This dashboard has started it.",
    )


def resume(worker: WorkerStatus) -> Action:
    """Withdraw a drain, or start what is stopped or failed."""
    return Action(name=f"resume worker {worker.id}", path=f"/workers/{worker.id}/resume")


def restart(status: Status, worker: WorkerStatus) -> Action:
    """Drain, stop, start one worker."""
    ends = f"Its {_requests(_busy(worker))} may finish first" if _busy(worker) else "It is idle"
    return Action(
        name=f"restart worker {worker.id}",
        path=f"/workers/{worker.id}/restart",
        verb="Restart",
        question=f"Restart worker {worker.id}?",
        consequence=f"{ends}; then a new process takes its place.{_last_one(status, worker)}",
    )


def restart_all(status: Status) -> Action:
    """Restart every worker, one at a time, the replacement ready first."""
    count = len(_counted(status))
    which = "the worker" if count == 1 else f"all {count} workers"
    return Action(
        name="rolling restart",
        path="/workers/restart",
        timeout_s=ALL_TIMEOUT_S,
        verb="Restart all",
        question=f"Restart {which}, one after the other?",
        consequence="A spare is ready before the first one stops; running requests may finish.",
    )


def cancel(request: RequestStatus) -> Action:
    """End one request, wherever it is."""
    name = request.id if len(request.id) <= 32 else request.id[:31] + "…"
    whose = f" of {request.key}" if request.key else ""
    if request.state == "queued":
        how = "It waits"
    else:
        how = f"It has {request.tokens_out} of at most {request.max_tokens} tokens"
    return Action(
        name=f"cancel request {name}",
        path=f"/requests/{request.id}",
        method="DELETE",
        verb="End it",
        keep="Let it run",
        question=f"Cancel request {name}{whose}?",
        consequence=f"{how}; its client gets an error at once.",
    )


def scale(status: Status, change: int, model: str | None = None) -> Action | None:
    """One worker more or fewer, spares not counted; None below one worker."""
    return scale_to(status, len(_counted(status, model)) + change, model)


def scale_to(status: Status, target: int, model: str | None = None) -> Action | None:
    """So many workers, of a model where there are several; spares do not count.

    None below one worker.
    """
    counted = _counted(status, model)
    now = len(counted)
    if target < 1:
        return None
    many = f"{target} worker{'' if target == 1 else 's'}"
    whose = "" if model is None else f"{model} "
    body: dict[str, int | str] = {"workers": target}
    if model is not None:
        body["model"] = model
    action = Action(
        name=f"scale {whose}to {many}", path="/scale", body=body, timeout_s=ONE_TIMEOUT_S
    )
    if target >= now:
        return action
    gone = sorted(worker.id for worker in counted)[target:]
    which = f"Worker {gone[0]} finishes its requests and is gone."
    if len(gone) > 1:
        which = f"Workers {fmt.cpus(gone)} finish their requests and are gone."
    return Action(
        name=action.name,
        path=action.path,
        body=action.body,
        timeout_s=action.timeout_s,
        verb="Scale down",
        question=f"Scale {whose}down from {now} to {many}?",
        consequence=which,
    )


def scale_auto(model: str | None = None) -> Action:
    """The load says how many workers there are, again."""
    body: dict[str, int | str] = {"workers": "auto"}
    if model is not None:
        body["model"] = model
    whose = "" if model is None else f"{model} "
    return Action(name=f"scale {whose}auto", path="/scale", body=body)


def reload() -> Action:
    """Read the configuration again."""
    return Action(
        name="reload",
        path="/reload",
        timeout_s=ALL_TIMEOUT_S,
        verb="Reload",
        question="Read the configuration again?",
        consequence="What has changed comes into force; requests end where they began.",
    )


def upgrade() -> Action:
    """The installed lbhost takes over."""
    return Action(
        name="upgrade",
        path="/upgrade",
        timeout_s=ALL_TIMEOUT_S,
        verb="Upgrade",
        question="Have the lbhost that is installed now take over?",
        consequence="A new server starts beside this one; requests end where they began.",
    )
