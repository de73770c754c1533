"""The probe at the first start: measured with real processes, remembered, and never in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from lbhost import model
from lbhost.errors import TuningError
from lbhost.machine import topology
from lbhost.machine.tree import Roots
from lbhost.placement.placement import Placement
from lbhost.tuning import first_start, identity, shelf
from lbhost.tuning.first_start import Subject
from lbhost.tuning.gauge import Gauge
from lbhost.tuning.shapes import Shape, Speeds, candidates
from lbhost.tuning.shelf import MeasuredShape
from lbhost.tuning.trial import Load, Trial
from lbhost.weights import identify
from serving import PATIENCE_S, Server, alive, wait_for

pytestmark = pytest.mark.e2e

CPUS = sorted(os.sched_getaffinity(0))
several_cores = pytest.mark.skipif(len(CPUS) < 2, reason="one core leaves nothing to choose")


def starter() -> Load:
    path = Path(model.resolve("starter").path)
    return Load(str(path), identify([path]))


@contextmanager
def gauge(load: Load) -> Iterator[Gauge]:
    with Gauge(os.environ) as made:
        assert made.load(load, PATIENCE_S).weights_bytes > 0
        yield made


def subject(load: Load, available_bytes: int | None = None) -> Subject:
    box = topology.discover(Roots())
    return Subject(identity.of(load.parts, box, Roots(), 4), load, 100 << 20, 1024, available_bytes)


def measuring() -> list[int]:
    """Processes of a measurement that run below this one."""
    return [p.pid for p in psutil.Process().children(recursive=True) if alive(p.pid)]


# --- measuring --------------------------------------------------------------------------


def test_all_workers_of_a_shape_are_measured_at_once_and_gone_after() -> None:
    places = tuple(Placement((cpu,), 1) for cpu in CPUS[:2])
    with gauge(starter()) as measured:
        speeds = measured.measure(Trial(places, slots=2, window_s=0.01), PATIENCE_S)
        assert speeds.prefill > 0
        assert (speeds.decode or 0) > 0
        assert 0 <= speeds.waited < 1
        again = measured.measure(Trial(places[:1], slots=4, window_s=0.01), PATIENCE_S)
        assert (again.decode or 0) > 0
    wait_for(lambda: not measuring(), "nothing of it is left")


def test_a_trial_may_decode_for_longer_than_a_slot_is() -> None:
    with gauge(starter()) as measured:
        speeds = measured.measure(
            Trial((Placement((CPUS[0],), 1),), slots=1, window_s=6.0), PATIENCE_S
        )
    assert (speeds.decode or 0) > 0


def test_a_model_that_cannot_be_loaded_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with (
        pytest.raises(TuningError, match="cannot load") as error,
        gauge(Load(str(path), identify([path]))),
    ):
        raise AssertionError("nothing to measure")
    assert "\n" not in error.value.message
    wait_for(lambda: not measuring(), "nothing of it is left")


def test_a_worker_that_cannot_be_pinned_is_an_error() -> None:
    with gauge(starter()) as measured, pytest.raises(TuningError, match="Invalid argument"):
        measured.measure(Trial((Placement((100_000,), 1),), slots=1, window_s=0.01), PATIENCE_S)
    wait_for(lambda: not measuring(), "nothing of it is left")


def test_what_takes_too_long_is_ended() -> None:
    places = (Placement((CPUS[0],), 1),)
    with gauge(starter()) as measured, pytest.raises(TuningError, match="too long"):
        measured.measure(Trial(places, slots=1, window_s=600.0), 0.5)
    wait_for(lambda: not measuring(), "nothing of it is left")


def test_a_measuring_process_that_dies_is_an_error() -> None:
    with gauge(starter()) as measured:
        os.kill(measuring()[0], signal.SIGKILL)
        with pytest.raises(TuningError, match=r"has ended|is gone"):
            measured.measure(Trial((Placement((CPUS[0],), 1),), slots=1, window_s=0.01), PATIENCE_S)


STOPPED_WHILE_IT_FORKS = """
import os, signal, sys
from lbhost.tuning.gauge import Gauge
signal.signal(signal.SIGTERM, signal.default_int_handler)
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    with Gauge(os.environ) as gauge:
        gauge._link.recv(1)
except KeyboardInterrupt:
    sys.exit(0 if gauge_is_gone() else 2)
"""


def test_a_stop_signal_while_the_process_is_made_is_not_lost() -> None:
    gone = "def gauge_is_gone():\n  try: os.waitpid(-1, os.WNOHANG)\n"
    gone += "  except ChildProcessError: return True\n  return False\n"
    done = subprocess.run(
        [sys.executable, "-c", gone + STOPPED_WHILE_IT_FORKS],
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- the choice at a start --------------------------------------------------------------


@several_cores
def test_a_failed_measurement_means_one_thread_each_and_keeps_nothing(
    tmp_path: Path,
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    found = candidates(topology.discover(Roots()), 4)
    broken = subject(Load(str(path), identify([path])))
    assert first_start.shape(broken, found, environ, os.environ).threads == 1
    assert shelf.shape(environ, broken.identity) is None


@several_cores
def test_without_the_memory_nothing_is_loaded(tmp_path: Path) -> None:
    poor = subject(starter(), available_bytes=1 << 20)
    found = candidates(topology.discover(Roots()), 4)
    nowhere = {"PATH": "/nonexistent"}
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert first_start.shape(poor, found, environ, nowhere).threads == 1


def serve(cache: Path, runtime_dir: Path, *arguments: str) -> Server:
    environ = {"LBHOST_PROBE": "1", "XDG_CACHE_HOME": str(cache)}
    return Server(runtime_dir, "--ctx-size", "512", *arguments, environ=environ)


@several_cores
def test_the_first_start_measures_and_the_second_remembers(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serve(cache, tmp_path / "a") as server:
        first = server.status().workers
        assert "measuring once" in server.log.read_text()
        assert server.complete().status_code == 200
    (kept,) = (cache / "lbhost" / "shapes").iterdir()
    record = msgspec.json.decode(kept.read_bytes(), type=MeasuredShape)
    assert len(first) == record.shape.workers
    assert len(record.speeds) > 1

    wide = Shape(threads=2, workers=len(CPUS) // 2)
    speeds = {str(wide): Speeds(1, 1)}
    shelf.write(kept, MeasuredShape(record.identity, wide, speeds))
    with serve(cache, tmp_path / "b") as server:
        assert "measuring once" not in server.log.read_text()
        assert [len(worker.cores) for worker in server.status().workers] == [2] * wide.workers
        assert {worker.slots for worker in server.status().workers} == {8}
        assert server.complete().status_code == 200


@several_cores
def test_a_start_that_is_stopped_while_it_measures_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = tmp_path / "cache"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "lbhost", "serve", "--port", "0"),
                *("--runtime-dir", str(tmp_path / "run"), "--log-format", "json"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LBHOST_PROBE": "1", "XDG_CACHE_HOME": str(cache)},
        )
    try:
        wait_for(lambda: b"measuring once" in log.read_bytes(), "it measures")
        below = wait_for(
            lambda: psutil.Process(server.pid).children(recursive=True), "a measuring process"
        )
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        server.wait()
    assert not [process.pid for process in below if alive(process.pid)]
    assert not (tmp_path / "run" / "admin.sock").exists()
    assert not (cache / "lbhost").exists()
