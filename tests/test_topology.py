from __future__ import annotations

import os
from pathlib import Path

import pytest

import trees
from lbhost.errors import UsageError
from lbhost.machine.topology import CoreKind, PhysicalCore, Reread, discover
from lbhost.machine.tree import Roots
from lbhost.placement.plan import plan
from test_plan import cpus
from trees import Tree


def test_intel_desktop(tmp_path: Path) -> None:
    box = trees.intel_desktop(tmp_path / "box").topology()
    assert [core.cpus for core in box.cores] == [(n, n + 6) for n in range(6)]
    assert box.smt
    assert box.rows == 12
    assert box.effective_cores == 6
    assert box.cores[0] == PhysicalCore(
        cpus=(0, 6), core_id=0, package=0, node=0, max_khz=4_700_000
    )
    assert box.siblings([0, 1]) == (6, 7)
    assert cpus(plan(box, "auto")) == [(n,) for n in range(6)]


def test_amd_server_fills_a_node_before_the_next(tmp_path: Path) -> None:
    box = trees.amd_server(tmp_path / "box").topology()
    assert {(core.package, core.node) for core in box.cores} == {(0, 0), (1, 1)}
    assert len(plan(box, "auto")) == 16
    assert cpus(plan(box, 9)) == [(n,) for n in range(9)]
    assert cpus(plan(box, "auto", 4)) == [
        (0, 1, 2, 3),
        (4, 5, 6, 7),
        (8, 9, 10, 11),
        (12, 13, 14, 15),
    ]


def test_the_node_with_more_usable_cores_comes_first(tmp_path: Path) -> None:
    box = trees.amd_server(tmp_path / "box").topology([0, 1, 2, *range(8, 16)])
    assert cpus(plan(box, 2)) == [(8,), (9,)]
    # Groups of 4 never span nodes: 3 usable cores of node 0 stay free.
    assert cpus(plan(box, "auto", 4)) == [(8, 9, 10, 11), (12, 13, 14, 15)]


def test_raspberry_pi(tmp_path: Path) -> None:
    box = trees.raspberry_pi(tmp_path / "box").topology()
    assert not box.smt
    assert cpus(plan(box, "auto")) == [(0,), (1,), (2,), (3,)]


def test_a_vm_that_describes_nothing_has_a_core_per_cpu(tmp_path: Path) -> None:
    box = trees.bare_vm(tmp_path / "box").topology()
    assert not box.described
    assert [core.cpus for core in box.cores] == [(0,), (1,), (2,), (3,)]
    assert (box.quota_cpus, box.memory_limit) == (None, None)
    assert cpus(plan(box, "auto")) == [(0,), (1,), (2,), (3,)]


def test_empty_trees_fall_back_to_the_affinity_mask(tmp_path: Path) -> None:
    box = Tree(tmp_path / "box").topology([3, 5])
    assert [core.cpus for core in box.cores] == [(3,), (5,)]


def test_a_quota_of_one_and_a_half_gives_one_worker(tmp_path: Path) -> None:
    box = trees.container_v2(tmp_path / "box").topology()
    assert box.quota_cpus == 1.5
    assert box.memory_limit == 2 * trees.GIB
    assert box.effective_cores == 1
    assert cpus(plan(box, "auto")) == [(0,)]


def test_a_v1_container_is_held_to_quota_and_cpuset(tmp_path: Path) -> None:
    box = trees.container_v1(tmp_path / "box").topology()
    assert box.allowed == {0, 1, 2, 3}
    assert cpus(plan(box, "auto")) == [(0,), (1,)]


def test_mixed_cgroups_without_limits_leave_all_cores(tmp_path: Path) -> None:
    box = trees.mixed_cgroups(tmp_path / "box").topology()
    assert (box.quota_cpus, box.memory_limit, box.effective_cores) == (None, None, 2)


def test_a_hybrid_laptop_starts_with_its_performance_cores(tmp_path: Path) -> None:
    box = trees.hybrid_laptop(tmp_path / "box").topology()
    kinds = [core.kind for core in box.cores]
    assert kinds == [CoreKind.PERFORMANCE] * 2 + [CoreKind.EFFICIENCY] * 8
    assert cpus(plan(box, "auto")) == [(0,), (2,), *((n,) for n in range(4, 12))]
    # A worker of several threads never mixes the two kinds.
    assert cpus(plan(box, "auto", 2)) == [(0, 2), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert cpus(plan(box, "auto", 4)) == [(4, 5, 6, 7), (8, 9, 10, 11)]


@pytest.mark.parametrize(
    ("file", "slow", "fast"), [("cpu_capacity", 500, 1024), ("cpufreq/cpuinfo_max_freq", 2, 4)]
)
def test_slow_cores_are_told_by_capacity_or_clock(
    tmp_path: Path, file: str, slow: int, fast: int
) -> None:
    tree = Tree(tmp_path / "box")
    tree.cores((0, 0, n, (n,)) for n in range(4))
    for cpu in range(4):
        tree.put(f"{trees.CPU}/cpu{cpu}/{file}", slow if cpu < 2 else fast)
    assert cpus(plan(tree.topology(), "auto")) == [(2,), (3,), (0,), (1,)]


def test_the_first_allowed_sibling_of_each_core_is_used(tmp_path: Path) -> None:
    box = trees.intel_desktop(tmp_path / "box").topology([1, 6, 7, 8])
    assert cpus(plan(box, "auto")) == [(6,), (1,), (8,)]


def test_offline_siblings_are_left_out(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    tree.put(f"{trees.CPU}/online", "0-7")
    box = tree.topology()
    assert box.cores[5].cpus == (5,)
    assert box.rows == 12  # the board cannot grow when they come back


def test_a_foreign_tree_without_any_cpu_of_ours_still_has_one(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "box")
    tree.cores([(0, 0, 0, (4,)), (0, 0, 1, (5,))])
    assert tree.topology([0, 1]).allowed == {4}


def test_the_machine_itself_is_understood() -> None:
    box = discover(Roots())
    assert box.allowed <= os.sched_getaffinity(0)
    assert 1 <= box.effective_cores <= len(os.sched_getaffinity(0))
    placements = plan(box, "auto")
    assert len(placements) == box.effective_cores
    assert {cpu for group in cpus(placements) for cpu in group} <= box.allowed


@pytest.mark.parametrize(
    "path",
    [
        "topology/core_cpus_list",
        "topology/physical_package_id",
        "topology/core_id",
        "cpufreq/cpuinfo_max_freq",
    ],
)
def test_garbled_files_are_taken_for_missing(tmp_path: Path, path: str) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    for cpu in range(12):
        tree.put(f"{trees.CPU}/cpu{cpu}/{path}", "\x00?")
    assert len(plan(tree.topology(), "auto")) == 6


def test_a_root_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"LBHOST_SYSFS_ROOT: .*no such folder"):
        Roots.from_environ({"LBHOST_SYSFS_ROOT": str(tmp_path / "none")})
    assert Roots.from_environ({"LBHOST_PROCFS_ROOT": str(tmp_path)}).procfs == tmp_path
    assert Roots.from_environ({}) == Roots()


# --- what is allowed, read again --------------------------------------------------------


def test_what_is_allowed_is_read_again_and_the_rest_only_after_a_change(tmp_path: Path) -> None:
    tree = trees.container_v2(tmp_path / "box")
    group = "sys/fs/cgroup"
    reread = Reread(tree.roots, affinity=lambda: range(12))
    first = reread()
    assert (first.allowed, first.quota_cpus) == (frozenset(range(12)), 1.5)
    assert reread() is first
    tree.put(f"{group}/cpuset.cpus.effective", "2-3")
    tree.put(f"{group}/cpu.max", "290000 100000")
    second = reread()
    assert second.allowed == {2, 3}
    assert (second.quota_cpus, second.effective_cores) == (2.9, 2)
    tree.put(f"{group}/cpu.max", "max 100000")
    tree.put(f"{group}/memory.max", trees.GIB)
    third = reread()
    assert (third.quota_cpus, third.memory_limit) == (None, trees.GIB)
    tree.put(f"{trees.CPU}/online", "0-3")
    assert reread().cpus == (0, 1, 2, 3)
    assert reread() is reread()


def test_a_v1_cpuset_and_quota_are_read_again(tmp_path: Path) -> None:
    tree = trees.container_v1(tmp_path / "box")
    reread = Reread(tree.roots, affinity=lambda: range(12))
    assert reread().effective_cores == 2
    tree.put("sys/fs/cgroup/cpuset/cpuset.cpus", "1")
    tree.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    assert reread().allowed == {1}
    assert reread().quota_cpus is None


def test_the_affinity_of_this_process_is_read_again() -> None:
    before = os.sched_getaffinity(0)
    reread = Reread(Roots())
    assert reread().allowed <= before
    try:
        os.sched_setaffinity(0, {min(before)})
        assert reread().allowed == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert reread().allowed <= before
