"""What is worth fixing on a box: one small rule each, with a command or a setting. Pure.

A *problem* keeps `serve` from starting. *Advice* costs speed or safety now. A *note* is good
to know. Rules say nothing about what the machine does not tell.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import msgspec

from lbhost.board import CoreRow
from lbhost.config import Settings
from lbhost.doctor.survey import Survey
from lbhost.machine import cpulist
from lbhost.machine.topology import CoreKind
from lbhost.placement.heat import limits_of, of_chip
from lbhost.placement.memory import gib, nearly_gone
from lbhost.placement.placement import Placement

BUSY = 0.2
"""Part of a core that another program must use to be worth a line."""
_SPARE_FILES = 128
"""Descriptors beside the clients' connections: links, sensors, logs."""
_WHO = "ps -eo psr,pcpu,pid,comm --sort=-pcpu | head"


class Level(enum.StrEnum):
    """How much a finding matters."""

    PROBLEM = "problem"
    ADVICE = "advice"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """One thing worth knowing, and what to do about it."""

    level: Level
    text: str
    fix: str | None = None


def judge(
    settings: Settings,
    survey: Survey,
    placements: Sequence[Placement],
    *,
    system_info: str,
    gpu_capable: bool,
) -> list[Finding]:
    """All findings about the box, in the order of the rules.

    Args:
        placements: what would be started; empty if nothing can be.
        system_info: llama.cpp's own line about its build ("AVX2 = 1 | …").
        gpu_capable: whether that build can use GPUs.
    """
    return [
        *_quota(survey),
        *_neighbours(survey, placements),
        *_heat(settings, survey),
        *_sensors(survey),
        *_clock(survey),
        *_memory(survey),
        *_files(settings, survey),
        *_isolation(survey),
        *_build(survey, system_info),
        *_gpus(survey, gpu_capable),
    ]


def _advice(text: str, fix: str | None = None) -> Finding:
    return Finding(Level.ADVICE, text, fix)


def _note(text: str, fix: str | None = None) -> Finding:
    return Finding(Level.NOTE, text, fix)


def _quota(survey: Survey) -> Iterator[Finding]:
    quota = survey.topology.quota_cpus
    if quota is None:
        return
    if quota < 1:
        yield _advice(
            f"the cgroup's CPU quota is {quota:g} CPUs: the one worker stands still for "
            f"{1 - quota:.0%} of the time",
            "give the container at least 1 CPU (docker: --cpus 1, systemd: CPUQuota=100%)",
        )
    elif quota < len(survey.topology.usable) and quota % 1:
        whole = int(quota)
        yield _advice(
            f"of the cgroup's CPU quota of {quota:g} CPUs, {quota % 1:.2g} is used by no worker",
            f"set it to {whole + 1} for one more worker, or to {whole} and lose nothing "
            f"(docker: --cpus {whole + 1}, systemd: CPUQuota={whole + 1}00%)",
        )
    if survey.host.throttled:
        yield _advice(
            f"the cgroup was throttled in {survey.host.throttled:.0%} of the last periods: "
            "something in it uses up the quota",
            "raise the quota, or use fewer --workers",
        )


def _neighbours(survey: Survey, placements: Sequence[Placement]) -> Iterator[Finding]:
    pinned = sorted({cpu for placement in placements for cpu in placement.cpus})
    taken = [cpu for cpu in pinned if _others(survey, cpu) > BUSY]
    if taken:
        shares = ", ".join(f"{_others(survey, cpu):.0%} of CPU {cpu}" for cpu in taken)
        yield _advice(f"another program is using {shares}: its worker will get less work", _WHO)
    siblings = [cpu for cpu in survey.topology.siblings(pinned) if _others(survey, cpu) > BUSY]
    if siblings:
        yield _advice(
            f"the SMT siblings of workers' cores are busy (CPUs {cpulist.render(siblings)}): two "
            "siblings share one core's arithmetic",
            _WHO,
        )
    stolen = [core.steal for core in survey.cores if core is not None and core.steal is not None]
    if stolen and max(stolen) > 0.05:
        yield _advice(
            f"the hypervisor gives {max(stolen):.0%} of some CPU to other machines",
            "ask for dedicated CPUs",
        )
    nodes = {core.node for core in survey.topology.cores}
    if len(nodes) > 1 and survey.numa_balancing:
        yield _advice(
            "the kernel moves memory between NUMA nodes by itself, which stalls pinned workers",
            "sudo sysctl kernel.numa_balancing=0",
        )


def _heat(settings: Settings, survey: Survey) -> Iterator[Finding]:
    chosen = limits_of(settings.warm_c, settings.hot_c)
    read = [(row.temp_c, of_chip(row, chosen)) for row in survey.cores if row is not None]
    above = [(t, limits.warm_c) for t, limits in read if t is not None and t > limits.warm_c]
    if above:
        temp_c, warm_c = max(above)
        whose = "warm_c" if warm_c == chosen.warm_c else "the chip's own limit"
        yield _advice(
            f"a core is at {temp_c:.0f} °C, above {whose} ({warm_c:g} °C): hot cores get less work",
            "check fans and dust, or raise warm_c if this is normal for the box",
        )


def _sensors(survey: Survey) -> Iterator[Finding]:
    missing = [
        name
        for name, there in (
            ("temperatures", _known(survey, "temp_c")),
            ("clocks", _known(survey, "freq_ratio")),
            ("throttle counters", survey.throttle_counters),
        )
        if not there
    ]
    virtual = "hypervisor" in survey.flags
    if "temperatures" in missing and not virtual:
        driver = {"GenuineIntel": "coretemp", "AuthenticAMD": "k10temp"}.get(survey.vendor or "")
        if driver:
            yield _note(
                "no core temperatures: heat will be noticed by its effects only",
                f"sudo modprobe {driver}",
            )
            missing.remove("temperatures")
    if missing:
        where = "this virtual machine" if virtual else "this machine"
        yield _note(f"{where} offers no {_listed(missing)}; the router works without")


def _clock(survey: Survey) -> Iterator[Finding]:
    slow = survey.governors.get("powersave", 0)
    preference = survey.energy_preference
    if slow and survey.clock_driver in ("intel_pstate", "amd-pstate-epp"):
        # There "powersave" is the normal governor, and the preference decides.
        if preference in ("power", "balance_power"):
            yield _advice(
                f"the CPUs are told to save energy ({preference})",
                "echo performance | sudo tee "
                "/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference",
            )
    elif slow:
        yield _advice(
            f"{slow} CPUs have the powersave governor, which keeps them at their lowest clock",
            "sudo cpupower frequency-set -g performance",
        )
    kinds = [core.kind for core in survey.topology.usable]
    if CoreKind.EFFICIENCY in kinds and CoreKind.PERFORMANCE in kinds:
        yield _note(
            f"{kinds.count(CoreKind.EFFICIENCY)} of {len(kinds)} cores are efficiency cores: "
            "their workers come last and get the work that fits their speed"
        )


def _memory(survey: Survey) -> Iterator[Finding]:
    if survey.huge_pages == "never":
        yield _advice(
            "transparent huge pages are off: weights and KV cache cost more TLB misses",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    total, left = survey.host.memory_total, survey.host.memory_available
    if total and left is not None and nearly_gone(total, left):
        yield _advice(
            f"only {gib(left)} of {gib(total)} of memory are left: over the limit the kernel kills "
            "a process, most likely a worker",
            "raise the limit, free memory, or use fewer --workers or --slots or a smaller "
            "--ctx-size",
        )
    if survey.oom_ends_whole:
        yield _advice(
            "memory.oom.group is 1 in the cgroup (Kubernetes sets it): over the memory limit the "
            "kernel ends the whole server, not one worker",
            "set --memory-limit so that all workers fit together, or have it off (kubelet: "
            "singleProcessOOMKill: true, systemd: OOMPolicy=continue)",
        )
    if survey.swap_total and survey.swap_free is not None:
        used = survey.swap_total - survey.swap_free
        if used > survey.swap_total / 20:
            yield _advice(
                f"{gib(used)} are swapped out: a worker whose KV cache is swapped stalls",
                "free memory, then: sudo swapoff -a && sudo swapon -a",
            )
    if (survey.host.psi_memory or 0) > 0.05:
        yield _advice(
            f"programs waited for memory during {survey.host.psi_memory:.0%} of the last 10 s",
            "free memory, or use a smaller --ctx-size",
        )


def _files(settings: Settings, survey: Survey) -> Iterator[Finding]:
    need = settings.max_connections + _SPARE_FILES
    most = survey.open_files_most  # serve raises the soft limit
    if 0 <= most < need:
        yield _advice(
            f"at most {most} open files are allowed, {settings.max_connections} connections "
            f"need {need}",
            f"ulimit -Hn {need} (systemd: LimitNOFILE={need}), or a smaller --max-connections",
        )


def _isolation(survey: Survey) -> Iterator[Finding]:
    if survey.protection is not None and survey.protection.missing:
        yield Finding(
            Level.ADVICE,
            survey.protection.missing,
            "a kernel of 6.12 or newer with `landlock` in its list of LSMs has all of it",
        )


def _build(survey: Survey, system_info: str) -> Iterator[Finding]:
    words = {
        "avx2": "AVX2",
        "avx512f": "AVX512",
        "avx512_vnni": "AVX512_VNNI",
        "amx_int8": "AMX_INT8",
        "asimddp": "DOTPROD",
    }
    unused = [
        name
        for flag, name in words.items()
        if system_info and flag in survey.flags and f"{name} = 1" not in system_info
    ]
    if unused:
        yield _advice(
            f"llama.cpp was built without {_listed(unused)}, which this CPU has",
            "CMAKE_ARGS=-DGGML_NATIVE=on pip install --force-reinstall --no-deps "
            "--no-cache-dir llama-cpp-python",
        )

    if "AVX512_FP16 = 1" in system_info:
        yield _advice(
            "llama.cpp was built to compute attention in AVX-512 FP16, which is slow for models "
            "with heads of 64",
            "pip cache remove llama_cpp_python; rm -r .venv; scripts/serve",
        )


def _gpus(survey: Survey, gpu_capable: bool) -> Iterator[Finding]:
    if not survey.driver_answered:
        yield _advice(
            "NVIDIA's driver does not answer: serve would run on the CPU",
            "nvidia-smi; if that hangs too, restart the machine",
        )
    if survey.gpus and not gpu_capable:
        yield _advice(
            f"{len(survey.gpus)} GPU(s) are there, but llama.cpp was built without CUDA",
            "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-deps "
            "--no-cache-dir llama-cpp-python",
        )
    for gpu in survey.gpus:
        row = survey.gpu_rows[gpu.index]
        if row is not None and row.clock_limit:
            yield _note(f"GPU {gpu.index} ({gpu.name}) is slowed down by: {row.clock_limit}")


def _others(survey: Survey, cpu: int) -> float:
    row = survey.cores[cpu] if cpu < len(survey.cores) else None
    return 0.0 if row is None or row.others is None else row.others


def _known(survey: Survey, field: str) -> list[float]:
    rows: list[CoreRow] = [row for row in survey.cores if row is not None]
    return [value for row in rows if (value := getattr(row, field)) is not None]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
