from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import trees
from lbhost.errors import UsageError
from lbhost.machine.gpu import GpuInfo
from lbhost.machine.topology import CoreKind, PhysicalCore, Topology, discover
from lbhost.machine.tree import Roots
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan
from trees import Tree

CARDS = [
    GpuInfo(index=0, uuid="GPU-a", name="A", node=1),
    GpuInfo(index=1, uuid="GPU-b", name="B", node=0),
]


def cpus(placements: list[Placement]) -> list[tuple[int, ...]]:
    return [placement.cpus for placement in placements]


def flat(cores: int, allowed: set[int] | None = None, quota: float | None = None) -> Topology:
    return Topology(
        cores=tuple(PhysicalCore(cpus=(n,)) for n in range(cores)),
        allowed=frozenset(range(cores) if allowed is None else allowed),
        quota_cpus=quota,
    )


# --- discover ---------------------------------------------------------------------------


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


# --- plan -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "workers", "threads", "reason"),
    [
        (flat(4), 5, 1, "--workers 5 is too many, at most 4 fit here: the machine has 4 physical"),
        (flat(4), 3, 2, "at most 2 of 2 threads fit here: the machine has 4 physical cores"),
        (flat(4, {1, 2}), 3, 1, "cpuset allows CPUs 1-2, 2 cores of 4"),
        (flat(4, quota=2.5), 3, 1, r"at most 2 fit here: the cgroup's CPU quota is 2.5 CPUs"),
        (flat(1), 2, 1, "the machine has 1 physical core$"),
        (flat(2), 1, 3, "--threads-per-worker 3 is more than this process can run at once"),
        (flat(4, quota=1.5), "auto", 2, "quota is 1.5 CPUs"),
    ],
)
def test_asking_for_too_much_is_refused_with_limit_and_reason(
    box: Topology, workers: int | str, threads: int, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as refusal:
        plan(box, workers, threads)
    assert "\n" not in refusal.value.message


def test_smt_siblings_are_named_when_someone_counts_on_them(tmp_path: Path) -> None:
    box = trees.intel_desktop(tmp_path / "box").topology()
    with pytest.raises(UsageError, match=r"6 physical cores \(12 logical CPUs: SMT siblings"):
        plan(box, 12)


@pytest.mark.parametrize(("quota", "workers"), [(0.3, 1), (1.0, 1), (1.99, 1), (2.0, 2), (9.0, 4)])
def test_a_quota_counts_in_whole_cores_and_leaves_at_least_one(quota: float, workers: int) -> None:
    assert len(plan(flat(4, quota=quota), "auto")) == workers


def test_a_worker_larger_than_every_node_still_gets_its_cores(tmp_path: Path) -> None:
    box = trees.amd_server(tmp_path / "box").topology()
    assert cpus(plan(box, "auto", 12)) == [tuple(range(12))]


def test_every_worker_is_pinned_to_cpus_of_its_own() -> None:
    for threads in (1, 2, 3):
        used = [cpu for group in cpus(plan(flat(7), "auto", threads)) for cpu in group]
        assert len(used) == len(set(used)) == 7 // threads * threads


def test_gpus_are_chosen_when_the_build_can_use_them(tmp_path: Path) -> None:
    box = trees.amd_server(tmp_path / "box").topology()
    placements = plan(box, "auto", gpus=CARDS, gpu_capable=True)
    # Each beside its card: GPU 0 hangs on node 1.
    assert placements == [
        Placement(cpus=(8,), threads=1, gpu=0, gpu_uuid="GPU-a", node=1),
        Placement(cpus=(0,), threads=1, gpu=1, gpu_uuid="GPU-b", node=0),
    ]
    assert len(plan(box, 1, gpus=CARDS, gpu_capable=True)) == 1


@pytest.mark.parametrize(("gpus", "capable"), [(CARDS, False), ([], True)])
def test_without_build_or_cards_the_cores_are_used(gpus: list[GpuInfo], capable: bool) -> None:
    placements = plan(flat(4), "auto", gpus=gpus, gpu_capable=capable)
    assert len(placements) == 4
    assert all(placement.gpu is None for placement in placements)


def test_more_gpu_workers_than_cards_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 2 fit here: one worker per GPU"):
        plan(flat(4), 3, gpus=CARDS, gpu_capable=True)


def test_gpu_workers_share_cores_where_there_are_fewer_cores_than_cards() -> None:
    placements = plan(flat(4, {0, 1}, quota=1.0), "auto", gpus=CARDS * 2, gpu_capable=True)
    assert cpus(placements) == [(0,), (1,), (0, 1), (0, 1)]


@pytest.mark.parametrize("build", [trees.intel_desktop, trees.amd_server, trees.hybrid_laptop])
def test_plans_are_the_same_every_time(tmp_path: Path, build: Callable[[Path], Tree]) -> None:
    tree = build(tmp_path / "box")
    assert plan(tree.topology(), "auto") == plan(tree.topology(), "auto")
