"""Whether niceness counts beside other programs is read from the kernel's grouping."""

from __future__ import annotations

from pathlib import Path

import pytest

import trees
from lbhost.machine import niceness


def test_it_counts_where_nothing_is_grouped(tmp_path: Path) -> None:
    assert niceness.counts(trees.bare_vm(tmp_path / "box").roots)


@pytest.mark.parametrize(("setting", "counts"), [(0, True), (1, False)])
def test_it_does_not_count_between_sessions(tmp_path: Path, setting: int, counts: bool) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.put("proc/sys/kernel/sched_autogroup_enabled", setting)
    assert niceness.counts(tree.roots) is counts


def test_it_does_not_count_for_a_service(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    tree.cgroup_v2("/system.slice/lbhost.service")
    assert niceness.counts(tree.roots)  # the group has no CPU controller
    tree.put("sys/fs/cgroup/system.slice/cpu.weight", 100)
    assert not niceness.counts(tree.roots)


def test_a_container_that_sees_its_own_group_as_the_root_is_a_group(tmp_path: Path) -> None:
    tree = trees.container_v1(tmp_path / "v1")
    tree.put("proc/self/cgroup", "4:cpu,cpuacct:/\n0::/")
    tree.put("proc/self/mountinfo", "42 30 0:42 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu")
    tree.put("sys/fs/cgroup/cpu/cpu.shares", 1024)
    assert not niceness.counts(tree.roots)
    tree.put("sys/fs/cgroup/cpu/release_agent", "")  # the kernel's root alone has it
    assert niceness.counts(tree.roots)


def test_a_container_is_a_group(tmp_path: Path) -> None:
    assert not niceness.counts(trees.container_v1(tmp_path / "v1").roots)
    tree = trees.container_v2(tmp_path / "v2")
    tree.put("sys/fs/cgroup/cpu.weight", 100)  # a root has none
    assert not niceness.counts(tree.roots)
