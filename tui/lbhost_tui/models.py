"""Several models: a line for each above its workers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lbhost.status import ModelStatus, Status
from lbhost_tui import columns
from lbhost_tui import format as fmt
from lbhost_tui.columns import Row
from lbhost_tui.paint import Parts, Role, fit, width_of


@dataclass(frozen=True)
class Heading:
    """The line of a model; no worker, and never selected."""

    model: ModelStatus

    def line(self, width: int) -> Parts:
        """As much of it as fits, the less telling facts left out first."""
        model = self.model
        head: Parts = (
            (f" {model.name} ", Role.STRONG),
            (f"{model.kind} " if model.kind != "chat" else "", Role.DIM),
            *columns.state(model.state),
        )
        if model.failure:
            return fit((*head, (f"  {model.failure}", Role.BAD)), width)
        facts: tuple[Parts, ...] = (
            _workers(model),
            _queue(model),
            _fact("in/s", fmt.number(round(model.prompt_tokens_s)), model.prompt_tokens_s >= 0.5),
            _fact("out/s", fmt.number(round(model.tokens_s, 1)), model.tokens_s >= 0.05),
            _fact("p95", fmt.latency(model.ttft_p95_s), model.ttft_p95_s),
            _failing(model),
            _fact("req/s", fmt.number(round(model.requests_s, 1)), model.requests_s >= 0.05),
            _adapters(model),
        )
        for fact in filter(None, facts):
            if width_of(head) + 2 + width_of(fact) > width:
                break
            head = (*head, ("  ", Role.TEXT), *fact)
        return fit(head, width)


def _fact(name: str, value: str, weight: float | None) -> Parts:
    return ((f"{name} ", Role.DIM), (value, Role.TEXT if weight else Role.DIM))


def _workers(model: ModelStatus) -> Parts:
    short = Role.TEXT if model.workers_up >= model.workers else Role.WARN
    count = f"{model.workers_up}/{model.workers}"
    return (("up ", Role.DIM), (count, short), *scaling(model))


def scaling(model: ModelStatus) -> Parts:
    """Who says how many workers it has, where that is not fixed, and between which numbers."""
    if model.scaling == "fixed":
        return ()
    who, role = (" pinned", Role.WARN) if model.scaling == "pinned" else (" by load", Role.DIM)
    bounds = ""
    if model.min_workers is not None and model.max_workers is not None:
        bounds = f" {model.min_workers}-{model.max_workers}"
    return ((who, role), (bounds, Role.DIM))


def _queue(model: ModelStatus) -> Parts:
    oldest = model.oldest_wait_s
    waits: Parts = ()
    if oldest is not None:
        late = columns.load(oldest, 5.0, 30.0)
        waits = ((", oldest ", Role.DIM), (fmt.latency(oldest), late))
    return (*_fact("queue", str(model.queue_depth), model.queue_depth), *waits)


def _failing(model: ModelStatus) -> Parts:
    role = columns.load(model.error_rate, 0.001, 0.05)
    dim = role is Role.TEXT
    return (("failing ", Role.DIM), (fmt.percent(model.error_rate), Role.DIM if dim else role))


def _adapters(model: ModelStatus) -> Parts:
    """Nothing, where it has none."""
    names = ", ".join(adapter.name for adapter in model.adapters)
    return (("LoRA ", Role.DIM), (names, Role.TEXT)) if names else ()


def grouped(status: Status, rows: Sequence[Row]) -> Iterator[Row | Heading]:
    """The rows under the headings of their models; one model needs none."""
    if len(status.models) < 2:
        yield from rows
        return
    names = [model.name for model in status.models]
    for model in status.models:
        yield Heading(model)
        yield from (row for row in rows if row.worker.model == model.name)
    yield from (row for row in rows if row.worker.model not in names)


def named(status: Status) -> str:
    """What the screen's title calls the models."""
    if len(status.models) < 2:
        return status.model
    return f"{len(status.models)} models: " + ", ".join(model.name for model in status.models)
