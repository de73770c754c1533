from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import trees
from lbhost.errors import UsageError
from lbhost.machine.gpu import GpuInfo
from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan, spread
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


def test_models_go_where_the_fewest_others_are_at_home() -> None:
    box = plan(flat(3), "auto")
    assert cpus(spread(box, [])) == [(0,), (1,), (2,)]
    assert cpus(spread(box, box[:2])) == [(2,), (0,), (1,)]
    assert cpus(spread(box, [box[0], box[0], box[1], box[2]])) == [(1,), (2,), (0,)]


def test_a_worker_of_several_threads_avoids_the_busiest_of_its_cores() -> None:
    wide = plan(flat(4), "auto", 2)
    narrow = plan(flat(4), "auto")
    assert cpus(spread(wide, narrow[:1])) == [(2, 3), (0, 1)]


def test_gpus_are_as_they_were() -> None:
    cards = plan(flat(4), "auto", 1, CARDS, gpu_capable=True)
    assert spread(cards, plan(flat(4), 2)) == cards
