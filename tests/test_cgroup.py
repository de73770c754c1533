from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import trees
from lbhost.machine import cgroup, cpulist
from trees import GIB, Tree


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("0", {0}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("5-4", set()), ("0 - 1", None)]
    + [(bad, None) for bad in ("a", "0-", "-3", "0-99999999999", "1,x")],
)
def test_cpulists_are_parsed_and_garbled_ones_refused(text: str, cpus: set[int] | None) -> None:
    assert cpulist.parse(text) == cpus


def test_a_cpulist_is_rendered_in_runs() -> None:
    assert cpulist.render([5, 0, 1, 2, 8, 2]) == "0-2,5,8"
    assert cpulist.render([]) == ""


def test_v2_quota_memory_and_cpuset(tmp_path: Path) -> None:
    group = cgroup.locate(trees.container_v2(tmp_path / "box").roots)
    assert group.quota_cpus() == 1.5
    assert group.cpus() == frozenset(range(12))
    assert group.memory_limit() == 2 * GIB
    # 1 GiB used, of which a quarter is page cache that can be dropped.
    assert group.memory_available() == GIB + GIB // 4


def test_v1_quota_memory_and_cpuset_under_the_hosts_paths(tmp_path: Path) -> None:
    group = cgroup.locate(trees.container_v1(tmp_path / "box").roots)
    assert group.quota_cpus() == 2.0
    assert group.cpus() == frozenset(range(4))
    assert group.memory_limit() == 3 * GIB
    assert group.memory_available() == 2 * GIB + GIB // 2


def test_the_tightest_limit_of_all_ancestors_binds(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    tree.cgroup_v2("/a.slice/b.slice/c.scope")
    at = "sys/fs/cgroup/a.slice"
    tree.put(f"{at}/cpu.max", "400000 100000")
    tree.put(f"{at}/memory.max", 8 * GIB)
    tree.put(f"{at}/b.slice/cpu.max", "125000 50000")
    tree.put(f"{at}/b.slice/memory.high", 4 * GIB)
    tree.put(f"{at}/b.slice/c.scope/cpu.max", "max 100000")
    tree.put(f"{at}/cpuset.cpus.effective", "2-5")
    group = cgroup.locate(tree.roots)
    assert group.quota_cpus() == 2.5
    assert group.memory_limit() == 4 * GIB
    assert group.cpus() == frozenset({2, 3, 4, 5})
    assert [folder.name for folder in group.quota_folders()] == ["b.slice", "a.slice"]


def test_processes_ended_for_want_of_memory_are_counted_in_v1_and_v2(tmp_path: Path) -> None:
    v2, v1 = trees.container_v2(tmp_path / "v2"), trees.container_v1(tmp_path / "v1")
    assert cgroup.locate(v2.roots).oom_kills() is None
    assert cgroup.locate(v1.roots).oom_kills() is None
    v2.put("sys/fs/cgroup/memory.events", "max 54\noom 4\noom_kill 3\noom_group_kill 0")
    v1.put("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\noom_kill 5")
    assert cgroup.locate(v2.roots).oom_kills() == 3
    assert cgroup.locate(v1.roots).oom_kills() == 5


def test_a_group_that_ends_as_a_whole_is_found_among_the_ancestors(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    tree.cgroup_v2("/pod/container")
    tree.put("sys/fs/cgroup/pod/container/memory.oom.group", 0)
    assert not cgroup.locate(tree.roots).ends_whole()
    tree.put("sys/fs/cgroup/pod/memory.oom.group", 1)
    assert cgroup.locate(tree.roots).ends_whole()
    assert not cgroup.locate(trees.container_v1(tmp_path / "v1").roots).ends_whole()


def test_a_quota_changed_under_a_running_server_is_seen(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    group = cgroup.locate(tree.roots)
    tree.put("sys/fs/cgroup/cpu.max", "max 100000")
    assert group.quota_cpus() is None
    assert group.quota_folders() == ()


def test_a_path_outside_of_the_mounted_part_shows_the_mount_point(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    tree.cgroup_v2("/../../elsewhere")
    assert cgroup.locate(tree.roots).quota_cpus() == 1.5


@pytest.mark.parametrize("build", [trees.mixed_cgroups, trees.bare_vm, trees.intel_desktop])
def test_no_limit_is_unknown_not_zero(tmp_path: Path, build: Callable[[Path], Tree]) -> None:
    group = cgroup.locate(build(tmp_path / "box").roots)
    assert group.quota_cpus() is None
    assert group.memory_limit() is None
    assert group.memory_available() is None


@pytest.mark.parametrize("line", ["", "max", "0 100000", "100000 0", "-1 100000", "a b", "9 9 9"])
def test_odd_quota_files_are_no_quota_and_no_error(tmp_path: Path, line: str) -> None:
    tree = trees.container_v2(tmp_path / "box")
    tree.put("sys/fs/cgroup/cpu.max", line)
    assert cgroup.locate(tree.roots).quota_cpus() == (1.0 if line == "9 9 9" else None)


@pytest.mark.parametrize(
    ("written", "name"), [("my\\040groups", "my groups"), ("größe\\134n", "größe\\n")]
)
def test_a_mount_with_odd_characters_in_its_name_is_found(
    tmp_path: Path, written: str, name: str
) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.cgroup_v2("/", mount=f"/sys/fs/{written}")
    tree.put(f"sys/fs/{name}/cpu.max", "300000 100000")
    assert cgroup.locate(tree.roots).quota_cpus() == 3.0
