"""The fork server's memory and CPUs on one NUMA node, as far as a box of one node shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trees
from lbhost.placement.plan import plan
from worker_harness import template

_ASK = """
import ctypes, json, os, sys
from lbhost.linux import bind_memory
number = {"x86_64": 239, "aarch64": 236, "riscv64": 236}[os.uname().machine]
done = [bind_memory(int(node)) for node in sys.argv[1:]]
def policy():
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.byref(mode), mask,
                              ctypes.c_ulong(1024), None, ctypes.c_ulong(0))
    return [mode.value, mask[0]]
print(json.dumps([done, policy()]), flush=True)
if os.fork() == 0:
    print(json.dumps(policy()), flush=True)
    os._exit(0)
os.wait()
"""

on_numa = pytest.mark.skipif(
    not Path("/sys/devices/system/node/node0").exists(), reason="the kernel knows no NUMA"
)


def ask(*nodes: int) -> list[object]:
    """bind_memory in a process of its own, then its policy and that of its fork."""
    command = [sys.executable, "-c", _ASK, *map(str, nodes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


@on_numa
def test_memory_is_preferred_from_the_node_and_forks_inherit_that() -> None:
    preferred = 1
    assert ask(0) == [[[True], [preferred, 1]], [preferred, 1]]


@on_numa
def test_a_node_that_does_not_exist_changes_nothing() -> None:
    assert ask(1000, -1, 5000) == [[[False] * 3, [0, 0]], [0, 0]]


def test_a_placement_names_the_node_of_its_cpus(tmp_path: Path) -> None:
    box = trees.amd_server(tmp_path / "box").topology()
    assert [p.node for p in plan(box, "auto", 4)] == [0, 0, 1, 1]
    assert [p.node for p in plan(box, "auto", 12)] == [None]


def test_on_a_box_of_one_node_there_is_nothing_to_name(tmp_path: Path) -> None:
    box = trees.intel_desktop(tmp_path / "box").topology()
    assert {p.node for p in plan(box, "auto")} == {None}
    # The same for a part of a box that has one node only in use, but several in all.
    server = trees.amd_server(tmp_path / "server")
    assert {p.node for p in plan(server.topology(range(8)), "auto")} == {0}
    assert server.roots.node_cpus(1).read_text() == "8-15,24-31\n"


@pytest.mark.e2e
@on_numa
def test_a_fork_server_loads_on_its_node_and_its_workers_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = max(os.sched_getaffinity(0))
    tree = trees.Tree(tmp_path / "box")
    tree.put("sys/devices/system/node/node0/cpulist", cpu)
    monkeypatch.setenv("LBHOST_SYSFS_ROOT", str(tree.roots.sysfs))
    with template(node=0) as forks:
        assert os.sched_getaffinity(forks.process.pid) == {cpu}
        worker = forks.fork(0)
        try:
            for pid in (forks.process.pid, worker.pid):
                assert "prefer:0" in Path(f"/proc/{pid}/numa_maps").read_text()
        finally:
            worker.close()
