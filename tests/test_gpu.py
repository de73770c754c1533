from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trees
from lbhost.board import Board, GpuRow
from lbhost.machine.gpu import GpuInfo, GpuReader, clock_limit, visible
from lbhost.machine.gpu_watch import STALE_NS, GpuWatch
from lbhost.machine.sampler import Sampler
from lbhost.machine.tree import Roots

GIB = 1 << 30


class FakeNvmlError(Exception):
    """What every call of the fake raises when it has to fail."""


class FakeNvml:
    """pynvml's functions over cards that are plain dictionaries. A missing key is an error."""

    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0
    nvmlClocksThrottleReasonGpuIdle = 1  # noqa: N815
    nvmlClocksThrottleReasonSwPowerCap = 4  # noqa: N815
    nvmlClocksThrottleReasonHwSlowdown = 8  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = 32  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = 64  # noqa: N815
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128  # noqa: N815

    def __init__(self, *cards: dict[str, Any], driver: bool = True) -> None:
        self.cards = list(cards)
        self.driver = driver
        self.running = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise FakeNvmlError("driver not loaded")
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:  # noqa: N802
        for card in self.cards:
            if card.get("uuid") == uuid and not card.get("lost"):
                return card
        raise FakeNvmlError("not found")

    def __getattr__(self, name: str) -> Any:
        key = {
            "nvmlDeviceGetUUID": "uuid",
            "nvmlDeviceGetName": "name",
            "nvmlDeviceGetMemoryInfo": "memory",
            "nvmlDeviceGetPciInfo": "pci",
            "nvmlDeviceGetUtilizationRates": "use",
            "nvmlDeviceGetTemperature": "temp",
            "nvmlDeviceGetCurrentClocksThrottleReasons": "reasons",
        }.get(name)
        if key is None:
            raise AttributeError(name)

        def call(card: dict[str, Any], *_: int) -> Any:
            if card.get("lost") or key not in card:
                raise FakeNvmlError(f"{name}: not supported")
            return card[key]

        return call


def card(number: int, **changes: Any) -> dict[str, Any]:
    """A healthy card."""
    return {
        "uuid": f"GPU-{number}",
        "name": "NVIDIA H100",
        "memory": SimpleNamespace(total=80 * GIB, used=20 * GIB),
        "pci": SimpleNamespace(busId=f"00000000:{number + 1}A:00.0"),
        "use": SimpleNamespace(gpu=37),
        "temp": 64,
        "reasons": 0,
    } | changes


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    tree = trees.bare_vm(tmp_path / "box")
    tree.put("sys/bus/pci/devices/0000:1a:00.0/numa_node", 1)
    tree.put("sys/bus/pci/devices/0000:2a:00.0/numa_node", -1)
    return tree.roots


def test_cards_are_found_with_name_memory_and_node(roots: Roots) -> None:
    reader = GpuReader(roots, FakeNvml(card(0), card(1, name=b"NVIDIA L4")))
    assert reader.gpus == (
        GpuInfo(index=0, uuid="GPU-0", name="NVIDIA H100", memory_total=80 * GIB, node=1),
        GpuInfo(index=1, uuid="GPU-1", name="NVIDIA L4", memory_total=80 * GIB, node=None),
    )


def test_a_reading(roots: Roots) -> None:
    reader = GpuReader(roots, FakeNvml(card(0, reasons=4 | 32)), clock_ns=lambda: 77)
    assert reader.read(0) == GpuRow(
        sampled_ns=77,
        uuid="GPU-0",
        name="NVIDIA H100",
        utilisation=0.37,
        memory_used=20.0 * GIB,
        memory_total=80.0 * GIB,
        temp_c=64.0,
        clock_limit="thermal,power",
    )


def test_no_driver_is_no_gpu(roots: Roots) -> None:
    fake = FakeNvml(card(0), driver=False)
    reader = GpuReader(roots, fake)
    assert reader.gpus == ()
    reader.close()
    assert fake.running == 0


def test_the_real_library_is_asked_without_error(roots: Roots) -> None:
    reader = GpuReader(roots)
    for gpu in reader.gpus:
        assert reader.read(gpu.index).uuid == gpu.uuid
    reader.close()


def test_a_card_without_an_answer_to_anything_is_left_out(roots: Roots) -> None:
    reader = GpuReader(roots, FakeNvml({"lost": True}, card(1)))
    assert [(gpu.index, gpu.uuid) for gpu in reader.gpus] == [(0, "GPU-1")]
    assert reader.read(0).temp_c == 64.0


def test_what_a_card_does_not_tell_is_unknown(roots: Roots) -> None:
    sparse = {"uuid": "GPU-0", "temp": 0}
    reader = GpuReader(roots, FakeNvml(sparse), clock_ns=lambda: 1)
    assert reader.gpus == (GpuInfo(index=0, uuid="GPU-0", name="GPU"),)
    assert reader.read(0) == GpuRow(sampled_ns=1, uuid="GPU-0", name="GPU")


def test_a_lost_card_is_unknown_and_known_again_after_a_reset(roots: Roots) -> None:
    fake = FakeNvml(card(0))
    reader = GpuReader(roots, fake, clock_ns=lambda: 1)
    fake.cards[0]["lost"] = True
    assert reader.read(0) == GpuRow(sampled_ns=1, uuid="GPU-0", name="NVIDIA H100")
    fake.cards[0] = card(0, temp=50)  # the old handle stays dead
    assert reader.read(0).temp_c is None
    assert reader.read(0).temp_c == 50.0


def test_closing_twice_shuts_nvml_down_once(roots: Roots) -> None:
    fake = FakeNvml(card(0))
    reader = GpuReader(roots, fake)
    reader.close()
    reader.close()
    assert fake.running == 0


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        (0, ""),
        (1, ""),
        (4, "power"),
        (64, "thermal"),
        (32 | 64, "thermal"),
        (8, "slowdown"),
        (4 | 8 | 32 | 128, "thermal,power,brake,slowdown"),
        (1 << 40, ""),
    ],
)
def test_clock_limits_in_words(reasons: int, text: str) -> None:
    assert clock_limit(FakeNvml(), reasons) == text
    assert len(text) <= 32  # the board's column


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0,9,1", [0]),
        ("GPU-ab", [0]),
        ("GPU-b,GPU-ac", [2, 1]),
        ("GPU-a", []),
        ("1,1", [1]),
    ],
)
def test_cuda_visible_devices_is_respected(value: str | None, indices: list[int]) -> None:
    uuids = ("GPU-ab", "GPU-ac", "GPU-b")
    gpus = [GpuInfo(index=n, uuid=uuid, name="") for n, uuid in enumerate(uuids)]
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [gpu.index for gpu in visible(gpus, environ)] == indices


def test_the_sampler_publishes_every_card_once_a_second(roots: Roots) -> None:
    tree = trees.Tree(roots.sysfs.parent / "other")
    tree.stat(range(2))
    box = tree.topology()
    board = Board.create(workers=0, cores=box.rows, gpus=2)
    fake = FakeNvml(card(0), card(1))
    now = 0
    reader = GpuReader(roots, fake, clock_ns=lambda: now)
    sampler = Sampler(board, box, tree.roots, reader, clock_ns=lambda: now)
    seen: list[set[int]] = [set(), set()]
    for now in range(1_000_000_000, 4_000_000_000, 250_000_000):  # noqa: B007 - the clock's
        sampler.sample()
        for index in range(2):
            row = board.gpus.read(index)
            assert row is not None
            assert row.temp_c == 64.0
            seen[index].add(row.sampled_ns)
    sampler.close()
    assert [len(times) for times in seen] == [3, 4]


# --- a driver that hangs ----------------------------------------------------------------


class HangingNvml(FakeNvml):
    """Every call of the function named by `hangs_in` waits for `released`."""

    def __init__(self, *cards: dict[str, Any]) -> None:
        super().__init__(*cards)
        self.hangs_in = ""
        self.hanging = threading.Event()
        self.released = threading.Event()

    def _wait(self, function: str) -> None:
        if self.hangs_in == function:
            self.hanging.set()
            self.released.wait()

    def nvmlInit(self) -> None:  # noqa: N802
        self._wait("nvmlInit")
        super().nvmlInit()

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)

        def waiting(*arguments: Any) -> Any:
            self._wait(name)
            return call(*arguments)

        return waiting


@pytest.fixture
def hanging() -> Iterator[HangingNvml]:
    fake = HangingNvml(card(0), card(1))
    yield fake
    fake.released.set()


def test_a_card_that_hangs_becomes_unknown_and_never_holds_the_sampler(
    tmp_path: Path, roots: Roots, hanging: HangingNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbhost.machine.gpu_watch.READ_EVERY_S", 0.0)
    now = 1
    watch = GpuWatch(roots, hanging, clock_ns=lambda: now)
    assert [watch.read(i).temp_c for i in range(2)] == [64.0, 64.0]
    hanging.hangs_in = "nvmlDeviceGetUtilizationRates"
    assert hanging.hanging.wait(60)
    tree = trees.bare_vm(tmp_path / "other")
    box = tree.topology()
    board = Board.create(workers=0, cores=box.rows, gpus=2)
    sampler = Sampler(board, box, tree.roots, watch, clock_ns=lambda: now)
    sampler.sample()
    assert board.gpus.read(0) == watch.read(0)
    assert watch.read(0).temp_c == 64.0
    now += STALE_NS + 1
    assert watch.read(0) == GpuRow(sampled_ns=1, uuid="GPU-0", name="NVIDIA H100")
    assert watch.read(1).temp_c is None
    for _ in range(4):
        sampler.sample()
    row = board.gpus.read(0)
    assert row is not None
    assert row.temp_c is None
    hanging.hangs_in = ""
    hanging.released.set()
    while watch.read(0).temp_c is None:
        threading.Event().wait(0.001)
    sampler.close()
    watch.close()
    assert hanging.running == 0


def test_a_driver_that_hangs_at_its_start_has_no_cards(roots: Roots, hanging: HangingNvml) -> None:
    hanging.hangs_in = "nvmlInit"
    watch = GpuWatch(roots, hanging, find_limit_s=0.01)
    assert (watch.gpus, watch.answered) == ((), False)
    hanging.hangs_in = ""
    hanging.released.set()
    watch.close()


def test_without_a_driver_no_thread_stays(roots: Roots) -> None:
    before = set(threading.enumerate())
    watch = GpuWatch(roots, FakeNvml(card(0), driver=False))
    assert (watch.gpus, watch.answered) == ((), True)
    watch.close()
    assert set(threading.enumerate()) <= before
