"""What the CLI shows to people: the status table, events, the server's first words. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lbhost.local_models import LocalModel
from lbhost.placement.memory import gib
from lbhost.status import Event, LogLine, ModelStatus, StatesStatus, Status, WorkerStatus

UNKNOWN = "\N{EN DASH}"
WIDTH = 80
"""Columns that a status may take."""

_STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "resting": "yellow",
    "stopping": "yellow",
    "degraded": "yellow",
    "stopped": "dim",
    "backoff": "red",
    "failed": "red",
}
_LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}

_COLUMNS = (
    ("ID", "right"),
    ("STATE", "left"),
    ("CORES", "left"),
    ("IDLE", "right"),
    ("OTHERS", "right"),
    ("TEMP", "right"),
    ("SLOTS", "right"),
    ("PEND", "right"),
    ("IN/S", "right"),
    ("OUT/S", "right"),
    ("KV", "right"),
    ("MEM", "right"),
    ("RST", "right"),
)


def models_view(models: Sequence[LocalModel]) -> Table:
    """What `lbhost models` shows."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("MODEL", overflow="fold")
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("WHERE", no_wrap=True)
    table.add_column("", overflow="fold")
    for model in models:
        size = f"{model.bytes / 1e6:.0f} MB" if model.complete else "incomplete"
        served = f"served as {', '.join(model.served)}" if model.served else ""
        table.add_row(model.spec, size, model.where, served)
    return table


def _states(states: StatesStatus) -> list[Text | Table]:
    if not states.movable:
        return [Text("KV states: none, this model's cannot be moved between workers")]
    if not states.entries:
        return []
    return [
        Text(
            f"KV states: {states.entries}, {gib(states.bytes)} of {gib(states.limit)}; "
            f"{states.tokens} tokens not computed again"
        )
    ]


def status_view(status: Status) -> Group:
    """The whole server in at most 80 columns, for as many rows as there are workers."""
    traffic = status.traffic
    several = len(status.models) > 1
    kind = "" if status.kind == "chat" else f" ({status.kind})"
    name = f"{len(status.models)} models" if several else f"{status.model[:40]}{kind}"
    head = Text(f"{name}  {status.endpoint}  ")
    head.append(status.state, _STATE_STYLES.get(status.state, ""))
    oldest = ""
    if traffic.oldest_wait_s is not None:
        oldest = f" (oldest {_ms(traffic.oldest_wait_s)})"
    failing = ""
    if traffic.error_rate is not None:
        failing = f", {_percent(traffic.error_rate)} failing now"
    lines: list[Text | Table] = [
        head,
        Text(
            f"up {duration(status.uptime_s)}, policy {status.policy}, "
            f"{traffic.requests} requests ({traffic.requests_s:.1f}/s), "
            f"{traffic.errors} errors{failing}, {traffic.rejected} rejected"
        ),
        Text(
            f"tokens/s: {traffic.prompt_tokens_s:.0f} in, {traffic.tokens_s:.1f} out; "
            f"TTFT p50 {_ms(traffic.ttft_p50_s)}, p95 {_ms(traffic.ttft_p95_s)}"
        ),
        Text(
            f"queue {traffic.queue_depth}/{traffic.queue_limit}{oldest}, "
            f"in flight {traffic.in_flight}"
        ),
    ]
    lines += _states(status.states)
    if status.rolling is not None:
        lines.append(Text(f"rolling restart: {status.rolling}"))
    if not several:
        lines += [
            Text(f"{told[0].upper()}{told[1:]}") for told in map(_scaling, status.models) if told
        ]
    if several:
        for model in status.models:
            of_model = [worker for worker in status.workers if worker.model == model.name]
            lines += [Text(), *_model_lines(model), *_adapters(model), _workers_table(of_model)]
    else:
        lines += [line for model in status.models for line in _adapters(model)]
        lines += [Text(), _workers_table(status.workers)]
    return Group(*lines, *map(Text, _notes(status)))


def _workers_table(workers: Sequence[WorkerStatus]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    for name, side in _COLUMNS:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for worker in workers:
        table.add_row(*_cells(worker))
    return table


def _model_lines(model: ModelStatus) -> list[Text]:
    """What there is to say of one of several models, in one line or two."""
    workers = f"  {model.workers_up}/{model.workers} workers{_scaled(model)}"
    room = WIDTH - len(f" ({model.kind})  {model.state}{workers}")
    name = model.name if len(model.name) <= room else f"{model.name[: room - 1]}…"
    line = Text(f"{name} ({model.kind})  ")
    line.append(model.state, _STATE_STYLES.get(model.state, "")).append(workers)
    traffic = (
        f"queue {model.queue_depth}, in flight {model.in_flight}, "
        f"{model.prompt_tokens_s:.0f} in/s, {model.tokens_s:.1f} out/s"
    )
    if len(line) + 2 + len(traffic) <= WIDTH:
        return [line.append(f", {traffic}")]
    return [line, Text(f"  {traffic}")]


def _scaled(model: ModelStatus) -> str:
    """How its number of workers comes about, in few words."""
    if model.scaling == "fixed":
        return ""
    bounds = f"{model.min_workers} to {model.max_workers}"
    return f" ({'pinned' if model.scaling == 'pinned' else 'by load'}, {bounds})"


def _adapters(model: ModelStatus) -> list[Text]:
    """Its LoRA adapters, if it has any."""
    told = [
        one.name if one.scale == 1.0 else f"{one.name} (x{one.scale:g})" for one in model.adapters
    ]
    return [Text(f"LoRA adapters: {', '.join(told)}")] if told else []


def _scaling(model: ModelStatus) -> str:
    """Who says how many workers it has, where that is not fixed."""
    asleep = "sleeps until a request comes, " if model.state == "sleeping" else ""
    told = {"auto": f"{asleep}scaled by its load", "pinned": "pinned until `lbhost scale auto`"}
    return told.get(model.scaling, "")


def _cells(worker: WorkerStatus) -> tuple[Text, ...]:
    cells = (
        str(worker.id),
        worker.state,
        _place(worker),
        _percent(worker.idle),
        _percent(worker.others),
        UNKNOWN if worker.temp_c is None else f"{worker.temp_c:.0f}°C",
        f"{worker.slots_busy}/{worker.slots}",
        str(worker.prefill_pending),
        f"{worker.prompt_tokens_s:.0f}",
        f"{worker.tokens_s:.1f}",
        _percent(worker.kv_used / worker.kv_total if worker.kv_total else None),
        UNKNOWN if worker.memory is None else size(worker.memory),
        str(worker.restarts),
    )
    state = _STATE_STYLES.get(worker.state, "")
    return tuple(Text(cell, state if at == 1 else "") for at, cell in enumerate(cells))


def _notes(status: Status) -> list[str]:
    """A line for whatever is not as it should be."""
    notes = [f"{model.name}: {model.failure}" for model in status.models if model.failure]
    notes += status.warnings
    for worker in status.workers:
        if worker.spare:
            notes.append(f"worker {worker.id} is a spare: it stands in for one that restarts")
        if worker.state in {"failed", "backoff"}:
            retry = ""
            if worker.retry_in_s is not None:
                retry = f"; next try in {worker.retry_in_s:.1f} s"
            elif worker.state == "failed":
                retry = f"; `lbhost resume {worker.id}` tries again"
            notes.append(f"worker {worker.id}: {worker.last_exit or 'no reason known'}{retry}")
    for name, process in (("gateway", status.gateway), ("fork server", status.template)):
        if process is not None and process.state != "ready":
            why = f" (last exit: {process.last_exit})" if process.last_exit else ""
            notes.append(f"{name}: {process.state}{why}")
    return ["", *notes] if notes else []


def event_line(event: Event) -> Text:
    """One event: time, level, message."""
    at = time.strftime("%H:%M:%S", time.localtime(event.time))
    line = Text(f"{at} ")
    line.append(f"{event.level:7}", _LEVEL_STYLES.get(event.level, ""))
    return line.append(f" {event.message}")


def log_line(line: LogLine) -> Text:
    """One line of a worker: time, level where there is one, what was written."""
    at = time.strftime("%H:%M:%S", time.localtime(line.time))
    shown = Text(f"{at} ")
    shown.append(f"{line.level:8} ", _LEVEL_STYLES.get(line.level, "dim"))
    return shown.append(line.message)


_TRY = {
    "chat": (
        "chat/completions",
        '{"messages": [{"role": "user", "content": "What is a load balancer?"}]}',
    ),
    "embedding": ("embeddings", '{"input": "What is a load balancer?"}'),
    "rerank": ("rerank", '{"query": "Who is tall?", "documents": ["A hill.", "A giraffe."]}'),
}
"""A request for each kind of model: path and body."""


def banner(status: Status) -> str:
    """What `serve` says once it serves: what, where, and how to try it."""
    workers = [w for w in status.workers if w.state == "ready"]
    where = ", ".join(f"gpu {w.gpu}" if w.gpu is not None else _cpus(w.cores) for w in workers)
    kind = "GPU" if workers and workers[0].gpu is not None else "CPU"
    first = workers[0] if workers else status.workers[0]
    count = _count(len(workers))
    json = "-H 'content-type: application/json'"
    path, body = _TRY.get(status.kind, _TRY["chat"])
    if len(status.models) > 1:
        names = max(len(model.name) for model in status.models)
        served = [
            f"lbhost {status.version} serves {len(status.models)} models",
            *(
                f"  {model.name:{names}}  {model.kind}, {_count(model.workers_up)}, "
                f"{model.slots} slots of {model.ctx_size} tokens each"
                if model.failure is None
                else f"  {model.name:{names}}  not served: {model.failure}"
                for model in status.models
            ),
        ]
    else:
        served = [
            f"lbhost {status.version} serves {status.model}",
            f"  {count} on {kind} {where}, {first.slots} slots of {first.ctx_size} tokens each",
        ]
    return "\n".join(
        [
            *served,
            f"  endpoint  {status.endpoint}/v1",
            f"  admin     {status.runtime_dir}/admin.sock  (lbhost status, lbhost tui)",
            "  try",
            f"    curl {status.endpoint}/v1/{path} {json} \\",
            f"      -d '{body}'",
        ]
    )


def _count(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "42s", "3m12s", "5h02m", "12d3h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def size(count: float) -> str:
    """Bytes in at most five characters: "820M", "1.3G"."""
    for unit in "BKMG":
        if count < 999.5:
            return f"{count:.0f}{unit}" if unit != "G" or count >= 10 else f"{count:.1f}G"
        count /= 1024
    return f"{count:.1f}T"


def _place(worker: WorkerStatus) -> str:
    if worker.gpu is not None:
        return f"gpu {worker.gpu}"
    return _cpus(worker.cores) + (f" +{_cpus(worker.lent)}" if worker.lent else "")


def _cpus(cores: Sequence[int]) -> str:
    if len(cores) > 2 and list(cores) == list(range(cores[0], cores[-1] + 1)):
        return f"{cores[0]}-{cores[-1]}"
    return ",".join(map(str, cores))


def _percent(part: float | None) -> str:
    return UNKNOWN if part is None else f"{100 * part:.0f}%"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
