from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fake_admin
import trees
from lbhost.board import CoreRow, HostRow
from lbhost.config import Settings
from lbhost.doctor import own, survey
from lbhost.doctor.findings import Level
from lbhost.doctor.report import ModelFacts, Report, collect, examine, render
from lbhost.doctor.survey import Survey
from lbhost.machine.gpu import GpuReader
from lbhost.machine.tree import Roots
from lbhost.sandbox.profiles import Protection
from test_gpu import FakeNvml, card
from trees import GIB, Tree

MODEL = ModelFacts(
    name="SmolLM2", weights_bytes=98 << 20, kv_bytes_per_token=23040, n_ctx_train=8192
)
WHOLE = Protection(landlock=7, seccomp=True)
BUILD = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | "


def look(
    tree: Tree,
    busy: dict[int, tuple[int, int, int]] | None = None,
    affinity: Iterable[int] | None = None,
    nvml: Any = None,
) -> Survey:
    """A survey of a simulated box on which `busy` runs meanwhile."""
    now = [0]

    def wait(seconds: float) -> None:
        now[0] += int(seconds * 1e9)
        tree.run(busy or {}, int(seconds * 100))

    taken = survey.take(
        tree.roots,
        GpuReader(tree.roots, nvml or FakeNvml(driver=False)),
        {},
        affinity=tree.ticks if affinity is None else affinity,
        wait=wait,
        clock_ns=lambda: now[0],
    )
    return msgspec.structs.replace(taken, protection=WHOLE)  # whatever kernel the tests run on


def judge(box: Survey, model: ModelFacts | None = MODEL, **settings: Any) -> Report:
    return examine(Settings(**settings), box, model=model, system_info=BUILD)


def texts(report: Report, level: Level = Level.ADVICE) -> str:
    """All findings of a level with their fixes, a line each."""
    found = [f for f in report.findings if f.level is level]
    return "\n".join(f"{finding.text} -> {finding.fix}" for finding in found)


def test_a_healthy_vm_has_nothing_to_fix(tmp_path: Path) -> None:
    report = judge(look(trees.mixed_cgroups(tmp_path / "box")))
    assert report.ok
    assert texts(report) == ""
    assert "no temperatures, clocks and throttle counters" in texts(report, Level.NOTE).replace(
        "offers no", "no"
    )
    assert report.start[:2] == ("worker 0 on CPU 0", "worker 1 on CPU 1")
    assert report.n_ctx == 4096
    # 98 MiB of weights, 2 x 64 MiB of buffers, 2 x 4 x 4096 x 23040 bytes of KV cache.
    assert report.need_bytes == (98 << 20) + (128 << 20) + 2 * 4 * 4096 * 23040


def test_what_was_found_is_told(tmp_path: Path) -> None:
    found = judge(look(trees.hybrid_laptop(tmp_path / "box"))).found
    assert found["cores"] == "10 physical, 12 logical CPUs (SMT): 8 efficiency, 2 performance"
    assert found["allowed"] == "CPUs 0-11, no cgroup quota: at most 10 worker threads"
    assert found["sensors"].startswith("temperature of 12 CPUs (61 to 70 °C), clock of 12 CPUs")
    assert found["memory"] == "10.0 GiB available of 16.0 GiB, no swap"
    assert found["llama.cpp"] == "SSE3 AVX AVX2 REPACK"


def test_many_workers_take_a_line_per_node(tmp_path: Path) -> None:
    report = judge(look(trees.amd_server(tmp_path / "box")))
    assert report.start[:2] == (
        "8 workers, one on each of CPUs 0-7, NUMA node 0",
        "8 workers, one on each of CPUs 8-15, NUMA node 1",
    )


def test_a_wasted_fraction_of_a_quota_is_named(tmp_path: Path) -> None:
    report = judge(look(trees.container_v2(tmp_path / "box")))
    assert report.start[0] == "worker 0 on CPU 0"
    assert "quota of 1.5 CPUs, 0.5 is used by no worker -> set it to 2" in texts(report)
    assert report.found["memory"].startswith("1.2 GiB available of 2.0 GiB (the cgroup's limit)")


def test_a_quota_below_one_cpu_is_named(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    tree.put("sys/fs/cgroup/cpu.max", "25000 100000")
    assert "0.25 CPUs: the one worker stands still for 75%" in texts(judge(look(tree)))


def test_neighbours_are_named_with_their_cpu(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    advice = texts(judge(look(tree, {2: (20, 0, 0), 9: (25, 0, 0), 4: (0, 0, 3)})))
    assert "another program is using 80% of CPU 2: its worker will get less" in advice
    assert "SMT siblings of workers' cores are busy (CPUs 9)" in advice
    assert "the hypervisor gives 12% of some CPU" in advice
    assert "ps -eo psr" in advice


def test_a_powersave_governor_is_advice_only_where_it_slows(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    assert "12 CPUs have the powersave governor" in texts(judge(look(tree)))
    tree.put(f"{trees.CPU}/cpufreq/policy0/scaling_driver", "intel_pstate")
    assert "powersave" not in texts(judge(look(tree)))
    tree.put(f"{trees.CPU}/cpufreq/policy0/energy_performance_preference", "balance_power")
    assert "told to save energy (balance_power) -> echo performance" in texts(judge(look(tree)))


def test_memory_settings_that_cost_speed_are_named(tmp_path: Path) -> None:
    tree = trees.amd_server(tmp_path / "box")
    tree.put("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    tree.put("proc/sys/kernel/numa_balancing", 1)
    tree.memory(64 * GIB, 60 * GIB, swap=8 * GIB, swap_free=7 * GIB)
    tree.pressure(0.0, 12.5, 0.0)
    advice = texts(judge(look(tree)))
    assert "echo madvise | sudo tee" in advice
    assert "kernel.numa_balancing=0" in advice
    assert "1.0 GiB are swapped out" in advice
    assert "waited for memory during 12% of the last 10 s" in advice


def test_memory_that_is_nearly_gone_is_named(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    group = "sys/fs/cgroup"
    assert "of memory are left" not in texts(judge(look(tree)))
    # A limit that was lowered under a running server: what is used is more than what is allowed.
    tree.put(f"{group}/memory.max", GIB * 3 // 4 + (20 << 20))
    assert "only 20 MiB of 788 MiB of memory are left" in texts(judge(look(tree)))
    tree.put(f"{group}/memory.max", GIB // 2)
    assert "only 0 MiB of 512 MiB of memory are left" in texts(judge(look(tree)))


def test_a_cgroup_that_the_kernel_ends_as_a_whole_is_named(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    for value, named in ((0, False), (1, True)):
        tree.put("sys/fs/cgroup/memory.oom.group", value)
        assert ("the kernel ends the whole server" in texts(judge(look(tree)))) is named


def test_a_hot_core_is_named(tmp_path: Path) -> None:
    tree = trees.raspberry_pi(tmp_path / "box")
    tree.zone(0, "cpu-thermal", 84000)
    assert "a core is at 84 °C, above warm_c (80 °C)" in texts(judge(look(tree)))


def test_a_core_below_its_chips_own_limit_is_not_hot(tmp_path: Path) -> None:
    def at(temp_c: float) -> str:
        row = CoreRow(temp_c=temp_c, warm_c=88, hot_c=100)
        return texts(judge(msgspec.structs.replace(box, cores=(row,))))

    box = look(trees.bare_vm(tmp_path / "box"))
    assert "a core is at" not in at(87)
    assert "a core is at 89 °C, above the chip's own limit (88 °C)" in at(89)


_PARENT = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
)
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


def test_all_processes_of_a_running_lbhost_are_its_own() -> None:
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        status = fake_admin.status(pid=server.pid)
        row = msgspec.structs.replace(status.workers[0], pid=worker, cores=[7, 8])
        found = own.processes(msgspec.structs.replace(status, workers=[row]))
        assert {w.pid for w in found} == {server.pid, worker}
        assert [w.cpus for w in found if w.pid == worker] == [(7, 8)]
        assert all(len(w.cpus) == 1 for w in found if w.pid == server.pid)
        server.stdin.close()
    assert own.processes(msgspec.structs.replace(status, pid=server.pid)) == []
    assert own.processes(None) == []


def test_a_missing_driver_is_named_by_vendor(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\nmodel name\t: Ryzen\nflags\t: avx2\n")
    report = judge(look(tree))
    assert report.found["cpu"] == "Ryzen"
    assert "sudo modprobe k10temp" in texts(report, Level.NOTE)
    tree.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t: avx2 hypervisor\n")
    notes = texts(judge(look(tree)), Level.NOTE)
    assert "modprobe" not in notes
    assert "this virtual machine offers no temperatures" in notes


def test_a_build_without_the_cpus_features_is_named(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.put("proc/cpuinfo", "flags : avx2 avx512f avx512_vnni")
    advice = texts(judge(look(tree)))
    assert "built without AVX512 and AVX512_VNNI, which this CPU has" in advice


def test_a_driver_that_does_not_answer_is_named(tmp_path: Path) -> None:
    box = look(trees.bare_vm(tmp_path / "box"))
    assert "driver" not in texts(judge(box))
    box = msgspec.structs.replace(box, driver_answered=False)
    assert "NVIDIA's driver does not answer" in texts(judge(box))


def test_too_few_open_files_are_named(tmp_path: Path) -> None:
    box = look(trees.bare_vm(tmp_path / "box"))
    box = msgspec.structs.replace(box, open_files=512, open_files_most=1024)
    assert "ulimit -Hn 1152" in texts(judge(box))
    assert "ulimit" not in texts(judge(box, max_connections=800))


def test_a_limit_that_serve_raises_is_no_finding(tmp_path: Path) -> None:
    box = look(trees.bare_vm(tmp_path / "box"))
    box = msgspec.structs.replace(box, open_files=1024, open_files_most=524288)
    assert "ulimit" not in texts(judge(box))
    assert judge(box).found["open files"] == "1024, which serve raises (limit: 524288)"


def test_throttling_is_named(tmp_path: Path) -> None:
    box = look(trees.container_v2(tmp_path / "box"))
    box = msgspec.structs.replace(box, host=HostRow(throttled=0.4, quota_cpus=1.5))
    assert "throttled in 40% of the last periods" in texts(judge(box))


def test_cards_that_the_build_cannot_use_are_named(tmp_path: Path) -> None:
    box = look(trees.intel_desktop(tmp_path / "box"), nvml=FakeNvml(card(0, reasons=32)))
    report = judge(box)
    assert report.found["gpus"] == "NVIDIA H100, 80.0 GiB, 64 °C"
    assert "GGML_CUDA=on" in texts(report)
    assert "slowed down by: thermal" in texts(report, Level.NOTE)
    assert report.start[0] == "worker 0 on CPU 0"


def test_with_a_cuda_build_the_cards_are_used(tmp_path: Path) -> None:
    box = look(trees.intel_desktop(tmp_path / "box"), nvml=FakeNvml(card(0), card(1)))
    report = examine(Settings(), box, model=MODEL, gpu_capable=True)
    assert report.start[:2] == ("worker 0 on CPU 0, GPU 0", "worker 1 on CPU 1, GPU 1")
    assert report.start[2].endswith("of memory per GPU")
    assert "CUDA" not in texts(report)


def test_what_keeps_serve_from_starting_is_a_problem(tmp_path: Path) -> None:
    box = look(trees.bare_vm(tmp_path / "box"))
    report = judge(box, workers=9)
    assert not report.ok
    assert "--workers 9 is too many" in texts(report, Level.PROBLEM)
    assert report.start == ()
    assert "nothing, see below" in render(report)

    report = judge(box, ctx_size=8000, slots=64)
    assert not report.ok
    assert "of 8000 tokens needs" in texts(report, Level.PROBLEM)

    report = examine(Settings(), box, model=None, model_error="model.gguf: no such file")
    assert texts(report, Level.PROBLEM) == "model.gguf: no such file -> None"


def test_a_context_cut_by_memory_is_named(tmp_path: Path) -> None:
    report = judge(look(trees.bare_vm(tmp_path / "box")))
    assert report.n_ctx == 3328
    assert "memory leaves 3328 tokens of context per slot" in texts(report)


def test_the_rendered_report_has_every_finding_with_its_fix(tmp_path: Path) -> None:
    report = judge(look(trees.container_v2(tmp_path / "box"), {0: (25, 0, 0)}))
    text = render(report)
    assert text.endswith("\n")
    for finding in report.findings:
        assert f"  - {finding.text}\n" in text
        assert finding.fix is None or f"      {finding.fix}\n" in text
    for topic, words in report.found.items():
        assert f"  {topic}" in text
        assert words in text


@pytest.mark.parametrize(
    "build",
    [
        trees.intel_desktop,
        trees.amd_server,
        trees.raspberry_pi,
        trees.bare_vm,
        trees.container_v1,
        trees.hybrid_laptop,
        Tree,
    ],
)
def test_every_box_gets_a_report_that_json_can_hold(
    tmp_path: Path, build: Callable[[Path], Tree]
) -> None:
    box = look(build(tmp_path / "box"), affinity=range(4))
    for model in (None, MODEL):
        report = judge(box, model)
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
        assert render(report)


def test_rows_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    box = look(trees.bare_vm(tmp_path / "box"))
    box = msgspec.structs.replace(box, cores=(None, CoreRow(), None, None))
    assert judge(box).ok


def test_the_machine_itself_gets_a_report() -> None:
    report = collect(Settings(), roots=Roots(), environ={}, model=None, system_info=BUILD)
    assert report.placements
    assert "This box" in render(report)


def test_what_the_kernel_does_not_confine_is_named(tmp_path: Path) -> None:
    box = look(trees.mixed_cgroups(tmp_path / "box"))
    assert judge(box).found["isolation"] == "Landlock 7, filter of system calls"
    bare = judge(msgspec.structs.replace(box, protection=Protection(landlock=0, seccomp=False)))
    assert bare.found["isolation"] == "no Landlock, no filter of system calls"
    assert "no Landlock: children may open whatever this user may" in texts(bare)
    old = judge(msgspec.structs.replace(box, protection=Protection(landlock=4, seccomp=True)))
    assert "Landlock's version is 4 of 6: children may signal" in texts(old)
