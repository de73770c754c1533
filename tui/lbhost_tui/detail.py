"""The detail pane: everything that is known about the selected worker, and its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import VerticalScroll

from lbhost.status import CoreStatus, HostStatus, StatesStatus, Status, WorkerStatus
from lbhost_tui import columns
from lbhost_tui import format as fmt
from lbhost_tui.freshness import Age
from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Part, Parts, Role, fit

LEAST_WIDTH = 18
GAP = 2


@dataclass(frozen=True)
class Group:
    """A title and what stands under it."""

    title: str
    facts: tuple[tuple[str, Part], ...]


def _fact(text: str, role: Role = Role.TEXT) -> Part:
    return (text, Role.DIM if text == fmt.UNKNOWN else role)


def _count(value: int, bad: Role = Role.TEXT) -> Part:
    return (fmt.number(value), bad if value else Role.DIM)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _traffic(worker: WorkerStatus, age: Age) -> Group:
    return Group(
        "requests",
        (
            ("in flight", _count(worker.in_flight)),
            ("out/s", _fact(fmt.number(round(worker.tokens_s, 1)))),
            ("tokens out", _count(worker.tokens_out)),
            ("ttft", columns.aged(fmt.latency(worker.ttft_s), age)),
            ("inter-token", columns.aged(fmt.latency(worker.inter_token_s), age)),
            ("errors", _count(worker.errors, Role.WARN)),
            ("timeouts", _count(worker.timeouts, Role.WARN)),
        ),
    )


def _engine(worker: WorkerStatus) -> Group:
    kv = f"{fmt.number(worker.kv_used)}/{fmt.number(worker.kv_total)}"
    return Group(
        "engine",
        (
            ("slots", _fact(f"{worker.slots_busy} of {worker.slots}")),
            ("waiting", _count(worker.waiting)),
            ("pending", _count(worker.prefill_pending)),
            ("in/s", _fact(fmt.number(round(worker.prompt_tokens_s)))),
            ("prefill/s", _fact(fmt.number(worker.prefill_tok_s))),
            ("kv", _fact(kv)),
            ("context", _fact(str(worker.ctx_size))),
            ("memory", _fact(fmt.size(worker.memory))),
            ("of its own", _fact(_of_limit(worker))),
        ),
    )


def _of_limit(worker: WorkerStatus) -> str:
    """What it has taken for itself, and of how much."""
    own = fmt.size(worker.memory_own)
    return own if worker.memory_limit is None else f"{own}/{fmt.size(worker.memory_limit)}"


def _cores(worker: WorkerStatus, cores: Sequence[CoreStatus]) -> Group:
    mine = [core for core in cores if core.cpu in worker.cores]
    throttle = _mean([core.throttle_s for core in mine])
    steal = _mean([core.steal for core in mine])
    return Group(
        "core " + fmt.cpus(worker.cores) if len(worker.cores) == 1 else "cores",
        (
            ("idle", _fact(fmt.percent(worker.idle))),
            ("others", _fact(fmt.percent(worker.others), columns.load(worker.others, 0.25, 0.6))),
            ("share", _fact(fmt.percent(worker.share))),
            ("clock", _fact(fmt.percent(worker.freq_ratio))),
            ("temp", _fact(fmt.temperature(worker.temp_c), columns.heat(worker.temp_c))),
            ("heat leaves", _fact(fmt.percent(worker.heat))),
            ("throttled", _fact(_per_second(throttle), columns.load(throttle, 0.01, 1.0))),
            ("stolen", _fact(fmt.percent(steal), columns.load(steal, 0.05, 0.2))),
        ),
    )


def _gpu(worker: WorkerStatus, status: Status) -> Group | None:
    gpu = next((g for g in status.gpus if g.index == worker.gpu), None)
    if gpu is None or worker.gpu is None:
        return None
    limit = gpu.clock_limit
    memory = f"{fmt.size(gpu.memory_used)}/{fmt.size(gpu.memory_total)}"
    return Group(
        f"gpu {gpu.index}",
        (
            ("busy", _fact(fmt.percent(gpu.utilisation))),
            ("memory", _fact(memory if gpu.memory_used is not None else fmt.UNKNOWN)),
            ("temp", _fact(fmt.temperature(gpu.temp_c), columns.heat(gpu.temp_c))),
            ("limited", (limit, Role.WARN) if limit else ("no", Role.DIM)),
            ("share", _fact(fmt.percent(worker.share))),
        ),
    )


def _life(worker: WorkerStatus) -> Group:
    return Group(
        "process",
        (
            ("wanted", _fact(worker.wanted)),
            ("started", (f"{fmt.number(worker.epoch)}x", Role.TEXT)),
            ("restarts", _count(worker.restarts, Role.WARN)),
            ("hung", _count(worker.health_kills, Role.BAD)),
            ("too large", _count(worker.memory_restarts, Role.WARN)),
        ),
    )


def _host(host: HostStatus) -> Group:
    pressure = "/".join(_points(p) for p in (host.psi_cpu, host.psi_memory, host.psi_io))
    unknown = host.psi_cpu is None and host.psi_memory is None and host.psi_io is None
    facts = [
        ("mem free", _fact(fmt.size(host.memory_available))),
        ("mem total", _fact(fmt.size(host.memory_total))),
        ("psi c/m/i", _fact(fmt.UNKNOWN if unknown else pressure)),
    ]
    if host.quota_cpus is not None:
        facts.append(("cpu quota", _fact(f"{host.quota_cpus:g}")))
        throttled = columns.load(host.throttled, 0.05, 0.3)
        facts.append(("throttled", _fact(fmt.percent(host.throttled), throttled)))
    return Group("host", tuple(facts))


def _store(states: StatesStatus) -> Group:
    """What is kept of prompts for all workers."""
    asked = states.hits + states.misses
    rate = fmt.percent(states.hits / asked if asked else None)
    held = f"{fmt.size(states.bytes)}/{fmt.size(states.limit)}"
    return Group(
        "kv store",
        (
            ("held", _fact(held if states.movable else fmt.UNKNOWN)),
            ("hits", _fact(rate)),
            ("reused tok", _count(states.tokens)),
        ),
    )


def _points(fraction: float | None) -> str:
    return fmt.UNKNOWN if fraction is None else f"{fraction * 100:.0f}"


def _per_second(value: float | None) -> str:
    return fmt.UNKNOWN if value is None else f"{fmt.number(round(value, 1))}/s"


def summary(worker: WorkerStatus, status: Status) -> Parts:
    """One line: who, how, where, since when."""
    parts: list[Part] = [(f" worker {worker.id}  ", Role.STRONG), *columns.state(worker.state)]
    where = columns.place(worker)
    gpu = next((g for g in status.gpus if g.index == worker.gpu), None)
    parts.append(("   on ", Role.DIM))
    parts.append((gpu.name if gpu is not None else f"cpu {where}", Role.TEXT))
    if worker.pid is not None:
        parts += [("   pid ", Role.DIM), (str(worker.pid), Role.TEXT)]
    if worker.uptime_s is not None:
        parts += [("   up ", Role.DIM), (fmt.span(worker.uptime_s), Role.TEXT)]
    if worker.retry_in_s is not None:
        parts += [("   next start in ", Role.DIM), (fmt.span(worker.retry_in_s), Role.WARN)]
    return tuple(parts)


def page(worker: WorkerStatus, status: Status, width: int, age: Age = Age.FRESH) -> list[Parts]:
    """The whole pane for this width: the summary, then the groups side by side."""
    groups = [_traffic(worker, age), _engine(worker)]
    gpu = _gpu(worker, status)
    groups += [gpu] if gpu is not None else [_cores(worker, status.cores)]
    groups += [_life(worker), _host(status.host), _store(status.states)]
    lines: list[Parts] = [summary(worker, status)]
    if worker.last_exit:
        lines.append(((" last exit  ", Role.DIM), (worker.last_exit, Role.TEXT)))
    lines.append(())
    count = max(1, min(len(groups), (width - 1 + GAP) // (LEAST_WIDTH + GAP)))
    each = min(26, (width - 1 - GAP * (count - 1)) // count)
    stacks: list[list[Parts]] = [[] for _ in range(count)]
    for at, group in enumerate(groups):
        stack = stacks[at] if at < count else min(stacks, key=len)
        if stack:
            stack.append(fit((), each))
        stack += _block(group, each)
    for y in range(max(len(stack) for stack in stacks)):
        line: list[Part] = [(" ", Role.TEXT)]
        for at, stack in enumerate(stacks):
            line.append((" " * GAP if at else "", Role.TEXT))
            line += stack[y] if y < len(stack) else fit((), each)
        lines.append(tuple(line))
    return lines


def _block(group: Group, width: int) -> list[Parts]:
    lines = [fit(((group.title, Role.TITLE),), width)]
    for name, value in group.facts:
        room = width - len(name) - 1
        lines.append(((name + " ", Role.DIM), *fit((value,), room, right=True)))
    return lines


class Detail(VerticalScroll):
    """The pane. It scrolls where the screen is too low for it."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="detail", can_focus=False)
        self._lines = Lines(palette, name="detail-lines")
        self._last: tuple[WorkerStatus | None, Status | None] = (None, None)
        self._age = Age.FRESH
        self._stale = False

    def compose(self) -> ComposeResult:
        """One painted block."""
        yield self._lines

    @property
    def text(self) -> str:
        """What is shown, without colours."""
        return self._lines.text

    def on_resize(self) -> None:
        """The number of columns depends on the width."""
        self._draw()

    def show(
        self, worker: WorkerStatus | None, status: Status | None, age: Age, *, stale: bool
    ) -> None:
        """Show this worker."""
        self._last, self._age, self._stale = (worker, status), age, stale
        if self.display:
            self._draw()

    def _draw(self) -> None:
        worker, status = self._last
        if worker is None or status is None or self.size.width <= 0:
            self._lines.show([((" no worker is selected", Role.DIM),)])
            return
        lines = page(worker, status, self.size.width - 1, self._age)
        if self._lines.styles.height is None or self._lines.styles.height.value != len(lines):
            self._lines.styles.height = len(lines)
        self._lines.show(lines, stale=self._stale)
