"""`lbhost doctor`: what this box offers, what serve would start, what is worth fixing.

`examine` and `render` are pure; `collect` reads the box (half a second) and examines it.
Knows the model as four numbers and llama.cpp as a line of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from lbhost.config import Settings
from lbhost.doctor import findings, own, survey
from lbhost.doctor.findings import Finding, Level
from lbhost.doctor.survey import Survey
from lbhost.errors import StartupError, UsageError
from lbhost.machine import cpulist
from lbhost.machine.gpu_watch import GpuWatch
from lbhost.machine.tree import Roots
from lbhost.placement import memory
from lbhost.placement.memory import gib
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan
from lbhost.purpose import Purpose
from lbhost.sandbox.profiles import Protection
from lbhost.status import Status

_MANY = 8
"""Workers that get a line each."""


class ModelFacts(msgspec.Struct, frozen=True):
    """What the memory plan needs to know of the model."""

    name: str
    weights_bytes: int
    """LoRA adapters' files included."""
    kv_bytes_per_token: int
    n_ctx_train: int
    purpose: Purpose = Purpose()
    adapters: tuple[str, ...] = ()
    """Names of its LoRA adapters."""


class Report(msgspec.Struct, frozen=True):
    """The doctor's answer."""

    found: dict[str, str]
    """What the box offers, by topic, in words."""
    placements: tuple[Placement, ...]
    """What serve would start; empty if it cannot start."""
    n_ctx: int | None
    """Tokens per slot; None without a model, or when it does not fit."""
    need_bytes: int | None
    """Memory of the whole server (per GPU, for GPU workers)."""
    start: tuple[str, ...]
    """The same in words, a line each."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether serve can start."""
        return not any(finding.level is Level.PROBLEM for finding in self.findings)


def collect(
    settings: Settings,
    *,
    roots: Roots,
    environ: Mapping[str, str],
    model: ModelFacts | None,
    model_error: str | None = None,
    system_info: str = "",
    gpu_capable: bool = False,
    nvml: Any = None,
    running: Status | None = None,
) -> Report:
    """Read the box, which takes half a second, and judge it.

    Arguments as for `examine`, `survey.take` and `GpuWatch`.
    """
    reader = GpuWatch(roots, nvml)
    try:
        taken = survey.take(roots, reader, environ, own=partial(own.processes, running))
        taken = msgspec.structs.replace(taken, driver_answered=reader.answered)
    finally:
        reader.close()
    return examine(
        settings,
        taken,
        model=model,
        model_error=model_error,
        system_info=system_info,
        gpu_capable=gpu_capable,
        running=running,
    )


def examine(
    settings: Settings,
    box: Survey,
    *,
    model: ModelFacts | None,
    model_error: str | None = None,
    system_info: str = "",
    gpu_capable: bool = False,
    running: Status | None = None,
) -> Report:
    """Judge a box.

    Args:
        settings: as serve would have them.
        model: None when it could not be read.
        model_error: then, why.
        system_info: llama_print_system_info's text.
        gpu_capable: llama_supports_gpu_offload.
        running: the lbhost that runs here already, if any.
    """
    problems: list[Finding] = []
    if model_error is not None:
        problems.append(Finding(Level.PROBLEM, model_error))
    placements: list[Placement] = []
    try:
        placements = plan(box.topology, settings.workers, settings.threads, box.gpus, gpu_capable)
    except UsageError as error:
        problems.append(Finding(Level.PROBLEM, error.message))
    n_ctx = need = None
    notes: list[Finding] = []
    if model is not None and placements:
        shared = _budget(box, placements)
        try:
            n_ctx, need = _context(settings, model, shared)
        except StartupError as error:
            problems.append(Finding(Level.PROBLEM, error.message))
        else:
            notes += _short_context(settings, model, n_ctx)
    rest = findings.judge(
        settings, box, placements, system_info=system_info, gpu_capable=gpu_capable
    )
    if running is not None:
        notes.append(
            Finding(
                Level.NOTE,
                f"lbhost is running here (pid {running.pid}) and serves {running.model} at "
                f"{running.endpoint}: memory and cores above are what it leaves",
            )
        )
    return Report(
        found=_found(box, system_info),
        placements=tuple(placements),
        n_ctx=n_ctx,
        need_bytes=need,
        start=tuple(_start(settings, box, placements, model, n_ctx, need)),
        findings=(*problems, *notes, *rest),
    )


def render(report: Report) -> str:
    """The report for a terminal, lines of any width up to what the texts need."""
    width = max(len(topic) for topic in report.found)
    lines = ["This box"]
    lines += [f"  {topic:<{width}}  {text}" for topic, text in report.found.items()]
    lines += ["", "`lbhost serve` would start"]
    lines += [f"  {line}" for line in report.start or ("nothing, see below",)]
    for level, title in (
        (Level.PROBLEM, "Problems: serve cannot start"),
        (Level.ADVICE, "Worth fixing"),
        (Level.NOTE, "Good to know"),
    ):
        of_level = [finding for finding in report.findings if finding.level is level]
        if of_level:
            lines += ["", title]
        for finding in of_level:
            lines.append(f"  - {finding.text}")
            if finding.fix:
                lines.append(f"      {finding.fix}")
    return "\n".join(lines) + "\n"


def _budget(box: Survey, placements: Sequence[Placement]) -> memory.Budget:
    available = box.host.memory_available
    return memory.budget(placements, None if available is None else int(available), box.gpu_rows)


def _context(settings: Settings, model: ModelFacts, shared: memory.Budget) -> tuple[int, int]:
    n_ctx = memory.fit_context(
        available_bytes=shared.available_bytes,
        weights_bytes=model.weights_bytes * shared.copies,
        kv_bytes_per_token=model.kv_bytes_per_token,
        workers=shared.workers,
        slots=model.purpose.sequences(settings.slots),
        n_ctx_train=model.n_ctx_train,
        requested=model.purpose.context(settings.ctx_size, model.n_ctx_train),
    )
    need = memory.need_bytes(
        weights_bytes=model.weights_bytes * shared.copies,
        kv_bytes_per_token=model.kv_bytes_per_token,
        workers=shared.workers,
        slots=model.purpose.sequences(settings.slots),
        n_ctx=n_ctx,
    )
    return n_ctx, need


def _short_context(settings: Settings, model: ModelFacts, n_ctx: int) -> Iterator[Finding]:
    wanted = min(memory.DEFAULT_CONTEXT, model.n_ctx_train or memory.DEFAULT_CONTEXT)
    if settings.ctx_size is None and n_ctx < wanted:
        yield Finding(
            Level.ADVICE,
            f"memory leaves {n_ctx} tokens of context per slot, {wanted} would be the default",
            "use fewer --slots or --workers, free memory, or insist with --ctx-size",
        )


# --- words ------------------------------------------------------------------------------


def _found(box: Survey, system_info: str) -> dict[str, str]:
    host = box.host
    found = {"cpu": box.cpu_model or "unknown", **_cores(box)}
    found["sensors"] = _sensors(box)
    found["clocks"] = (
        ", ".join(f"{name} governor on {n} CPUs" for name, n in box.governors.items())
        or "no cpufreq"
    )
    found["gpus"] = "; ".join(_gpu(box, gpu.index) for gpu in box.gpus) or "none"
    if host.memory_total is not None and host.memory_available is not None:
        limit = " (the cgroup's limit)" if box.topology.memory_limit else ""
        swap = gib(box.swap_total) if box.swap_total else "no"
        left, total = gib(host.memory_available), gib(host.memory_total)
        found["memory"] = f"{left} available of {total}{limit}, {swap} swap"
    else:
        found["memory"] = "unknown"
    reserved = f", {box.huge_pages_reserved} reserved" if box.huge_pages_reserved else ""
    found["huge pages"] = f"transparent: {box.huge_pages or 'unknown'}{reserved}"
    soft, most = (str(n) if n >= 0 else "unlimited" for n in (box.open_files, box.open_files_most))
    found["open files"] = soft if soft == most else f"{soft}, which serve raises (limit: {most})"
    found["isolation"] = _isolation(box.protection)
    found["llama.cpp"] = _features(system_info)
    return found


def _cores(box: Survey) -> dict[str, str]:
    topo = box.topology
    logical = f", {len(topo.cpus)} logical CPUs (SMT)" if topo.smt else ""
    guessed = "" if topo.described else " (/sys does not describe them: a core per CPU assumed)"
    kinds = {core.kind for core in topo.cores}
    mix = ", ".join(
        f"{sum(core.kind is kind for core in topo.cores)} {kind}" for kind in sorted(kinds)
    )
    nodes: dict[int, set[int]] = {}
    for core in topo.cores:
        nodes.setdefault(core.node, set()).update(core.cpus)
    quota = "no cgroup quota" if topo.quota_cpus is None else f"a quota of {topo.quota_cpus:g} CPUs"
    return {
        "cores": f"{len(topo.cores)} physical{logical}{guessed}"
        + (f": {mix}" if len(kinds) > 1 else ""),
        "numa": "; ".join(f"node {n}: CPUs {cpulist.render(c)}" for n, c in sorted(nodes.items())),
        "allowed": f"CPUs {cpulist.render(topo.allowed)}, {quota}: "
        f"at most {topo.effective_cores} worker thread{'s' if topo.effective_cores > 1 else ''}",
    }


def _sensors(box: Survey) -> str:
    rows = [row for row in box.cores if row is not None]
    temps = [row.temp_c for row in rows if row.temp_c is not None]
    ratios = [row.freq_ratio for row in rows if row.freq_ratio is not None]
    span = f"{min(temps):.0f} to {max(temps):.0f} °C" if temps else ""
    there = [
        f"temperature of {len(temps)} CPUs ({span})" if temps else "no temperatures",
        f"clock of {len(ratios)} CPUs" if ratios else "no clocks",
        "throttle counters" if box.throttle_counters else "no throttle counters",
        "pressure" if box.host.psi_cpu is not None else "no pressure",
    ]
    return ", ".join(there)


def _gpu(box: Survey, index: int) -> str:
    info, row = next(gpu for gpu in box.gpus if gpu.index == index), box.gpu_rows[index]
    size = f", {gib(info.memory_total)}" if info.memory_total else ""
    degrees = f", {row.temp_c:.0f} °C" if row is not None and row.temp_c is not None else ""
    return f"{info.name}{size}{degrees}"


def _isolation(offered: Protection | None) -> str:
    if offered is None:
        return "unknown"
    landlock = f"Landlock {offered.landlock}" if offered.landlock else "no Landlock"
    return f"{landlock}, {'' if offered.seccomp else 'no '}filter of system calls"


def _features(system_info: str) -> str:
    """The features that are on, from "CPU : SSE3 = 1 | AVX = 0 | …"."""
    parts = [part.split(":")[-1].strip() for part in system_info.split("|")]
    on = [part.removesuffix("= 1").strip() for part in parts if part.endswith("= 1")]
    return " ".join(on) or "unknown build"


def _start(
    settings: Settings,
    box: Survey,
    placements: Sequence[Placement],
    model: ModelFacts | None,
    n_ctx: int | None,
    need: int | None,
) -> Iterator[str]:
    yield from _workers(box, placements)
    if model is not None and n_ctx is not None and need is not None:
        each = " per GPU" if placements and placements[0].gpu is not None else ""
        holds = f"{settings.slots} slots of {n_ctx} tokens each"
        if not model.purpose.generates:
            holds = f"{model.purpose.kind.value} of inputs of up to {n_ctx} tokens"
        weights = gib(model.weights_bytes)
        if model.adapters:
            weights += f" with the LoRA adapters {', '.join(model.adapters)}"
        yield f"{model.name} ({weights}), {holds}, {gib(need)} of memory{each}"


def _workers(box: Survey, placements: Sequence[Placement]) -> Iterator[str]:
    """A line per worker; where there are many of one thread, a line per NUMA node."""
    nodes = {cpu: core.node for core in box.topology.cores for cpu in core.cpus}
    several = len(set(nodes.values())) > 1
    if len(placements) > _MANY and all(p.threads == 1 and p.gpu is None for p in placements):
        per_node: dict[int, list[int]] = {}
        for placement in placements:
            per_node.setdefault(nodes[placement.cpus[0]], []).extend(placement.cpus)
        for number, cpus in per_node.items():
            node = f", NUMA node {number}" if several else ""
            yield f"{len(cpus)} workers, one on each of CPUs {cpulist.render(cpus)}{node}"
        return
    for number, placement in enumerate(placements):
        plural = "s" if len(placement.cpus) > 1 else ""
        node = f", NUMA node {nodes[placement.cpus[0]]}" if several else ""
        card = "" if placement.gpu is None else f", GPU {placement.gpu}"
        threads = f", {placement.threads} threads" if placement.threads > 1 else ""
        yield (
            f"worker {number} on CPU{plural} {cpulist.render(placement.cpus)}{node}{card}{threads}"
        )
