"""The ways to break a server: each is a coroutine that goes on until its time is over.

Processes are ended by the pids that the server itself names. All randomness is the one given.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks import machine
from faults import disk, injection
from faults.box import ORPHANS_S, BoxError
from faults.scene import Scene

CONFIG = "lbhost.toml"
STATES = "states"
DISK = "disk"


def kill(pid: int | None, number: signal.Signals) -> None:
    """Send a signal, if there is somebody."""
    if pid is not None:
        with suppress(ProcessLookupError):  # somebody else was quicker: a supervisor, a mixed fault
            os.kill(pid, number)


async def _strike(scene: Scene, number: signal.Signals) -> None:
    while not scene.over:
        workers = await scene.box.up()
        if len(workers) > 1:
            worker = scene.rng.choice(workers)
            scene.struck.append((time.monotonic(), worker.id))
            kill(worker.pid, number)
        await scene.pause()


async def kill_workers(scene: Scene) -> None:
    await _strike(scene, signal.SIGKILL)


async def stop_workers(scene: Scene) -> None:
    await _strike(scene, signal.SIGSTOP)


async def grow_workers(scene: Scene) -> None:
    """A worker takes twice its memory limit; it must be replaced before it takes more."""
    while not scene.over:
        workers = await scene.box.up()
        if len(workers) > 1:
            worker = scene.rng.choice(workers)
            assert worker.pid is not None, "who is up has a process"
            assert worker.memory_limit is not None, "the fault's flags set one"
            scene.struck.append((time.monotonic(), worker.id))
            try:
                await asyncio.to_thread(injection.grow, worker.pid, 2 * worker.memory_limit)
            except injection.InjectionError as error:
                raise BoxError(str(error)) from error
            await scene.box.until(
                lambda status, was=worker: any(  # type: ignore[misc]
                    w.id == was.id and w.epoch > was.epoch and w.state == "ready"
                    for w in status.workers
                ),
                f"worker {worker.id}, over its memory limit, is replaced",
                20.0,
            )
        await scene.pause()


async def kill_fork_server(scene: Scene) -> None:
    while not scene.over:
        status = await scene.box.status()
        if status.template is not None and status.template.state == "ready":
            kill(status.template.pid, signal.SIGKILL)
        await scene.pause()


async def kill_gateway(scene: Scene) -> None:
    while not scene.over:
        gateway = (await scene.box.status()).gateway
        if gateway.state == "ready":
            scene.moments.append(time.monotonic())
            kill(gateway.pid, signal.SIGKILL)
            await scene.box.until(
                lambda status, before=gateway.pid: (  # type: ignore[misc]
                    status.gateway.state == "ready" and status.gateway.pid != before
                ),
                "a new gateway",
                30.0,
            )
            took = time.monotonic() - scene.moments[-1]
            scene.moments.append(time.monotonic())
            if took > 10.0:
                scene.broken.append(f"the gateway was gone for {took:.1f} s")
        await scene.pause(5.0)


async def operate(scene: Scene) -> None:
    """Drain, resume, restart and scale, in any order."""
    while not scene.over:
        status = await scene.box.status()
        worker = scene.rng.choice(status.workers).id
        command = scene.rng.choice(("drain", "resume", "restart", "scale"))
        if command == "scale":
            await scene.box.post("/scale", {"workers": scene.rng.choice((1, 2, 3))})
        elif command != "drain" or len(await scene.box.up()) > 1:
            await scene.box.post(f"/workers/{worker}/{command}")
        await scene.pause(0.3)
    for worker_status in (await scene.box.status()).workers:
        await scene.box.post(f"/workers/{worker_status.id}/resume")
    await scene.box.post("/scale", {"workers": len(machine.cores())})


async def roll(scene: Scene) -> None:
    while not scene.over:
        refused = await scene.box.post("/workers/restart")
        if refused is not None:
            scene.broken.append(f"rolling restart: {refused}")
        await scene.pause(0.2)


async def hog(scene: Scene) -> None:
    """Another program on each core in turn."""
    while not scene.over:
        for cpu in machine.cores():
            with machine.neighbour(cpu):
                await scene.pause()


async def heat(scene: Scene) -> None:
    """Heat that wanders over the cores: 110 degrees on one, 45 on the others."""
    cpus = machine.cores()
    while not scene.over:
        hot = scene.rng.choice(cpus)
        for cpu in cpus:
            write_heat(scene.folder / "sys", cpu, 110 if cpu == hot else 45)
        await scene.pause(3.0)
    for cpu in cpus:
        write_heat(scene.folder / "sys", cpu, 45)


async def use_up_descriptors(scene: Scene) -> None:
    """As many idle connections as the gateway lets in, and some more; then, now and then, it has
    not one descriptor left."""
    host, port = scene.box.admin.host, scene.box.admin.port
    opened: list[socket.socket] = []
    middle = (time.monotonic() + scene.until) / 2
    try:
        while time.monotonic() < middle:
            if len(opened) < 2000:
                with suppress(OSError):
                    opened.append(socket.create_connection((host, port), 1.0))
            await asyncio.sleep(0.01)
    finally:
        for connection in opened:
            connection.close()
    while not scene.over:
        await _starve(scene)
        await scene.pause(4.0)


async def _starve(scene: Scene) -> None:
    """For 2 s the gateway may open nothing more."""
    pid = (await scene.box.status()).gateway.pid
    if pid is None:
        return
    scene.others += 1
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    async with _away(scene):
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, limits[1]))
            await scene.pause(2.0)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def close_logs(scene: Scene) -> None:
    """Whoever reads the log goes away; then a worker dies, which the log would like to tell."""
    await scene.pause(1.0)
    scene.box.close_pipe()
    await kill_workers(scene)


async def replace_model(scene: Scene) -> None:
    """The model's file is overwritten and then replaced while it is served."""
    model = scene.folder / "model.gguf"
    await scene.pause(1.0)
    with model.open("r+b") as file:
        file.seek(model.stat().st_size // 2)
        file.write(b"\0" * 1_000_000)
    await scene.pause(2.0)
    other = model.with_suffix(".new")
    await asyncio.to_thread(shutil.copyfile, model, other)
    other.replace(model)
    while not scene.over:
        await scene.pause()


async def reload(scene: Scene) -> None:
    """The configuration changes in a loop: limits, what workers are made with, and every fourth
    time what only another server can have, which takes over."""
    file, slots = scene.folder / CONFIG, 4
    turn = 0
    while not scene.over:
        turn += 1
        slots = slots % 6 + 2 if turn % 4 == 0 else slots
        queue, nice = scene.rng.randint(200, 400), scene.rng.randint(0, 5)
        file.write_text(f"queue_size = {queue}\nnice = {nice}\nslots = {slots}\n")
        refused = await scene.box.post("/reload")
        if refused is not None:
            scene.broken.append(f"reload: {refused}")
        file.write_text("queue_size = 'many'\n")
        if await scene.box.post("/reload") is None:
            scene.broken.append("a configuration that is no good was taken")
        await scene.pause(1.0)
    await scene.box.settled()


async def damage_states(scene: Scene) -> None:
    """The server ends and starts again; in between, what it has kept on disk is damaged."""

    def damage() -> None:
        kept = sorted((scene.folder / STATES).rglob("*.state"))
        for path in scene.rng.sample(kept, (len(kept) + 1) // 2):
            _damage(path, scene.rng)

    while not scene.over:
        await _again(scene, damage)
        await scene.pause(8.0)


async def fill_disk(scene: Scene) -> None:
    """The disk of log and states fills, workers die, and there is room again; every third time the
    server ends and starts while there is none."""
    folder, turn = scene.folder / DISK, 0
    while not scene.over:
        turn += 1
        scene.others += 1
        disk.fill(folder, scene.rng.choice((0, 4096, 100_000)))
        workers = await scene.box.up()
        if len(workers) > 1:
            worker = scene.rng.choice(workers)
            scene.struck.append((time.monotonic(), worker.id))
            kill(worker.pid, signal.SIGKILL)
        await scene.pause(3.0)
        if turn % 3 == 0 and not scene.over:
            await _again(scene)
        disk.empty(folder)
        await scene.pause(3.0)


async def step_clock(scene: Scene) -> None:
    """The wall clock jumps by an hour or two, forth and back."""
    assert scene.clock is not None, "the fault has asked for one"
    pids = [scene.box.pid, *machine.tree(scene.box.pid)]
    if blind := [pid for pid in pids if not scene.clock.reaches(pid)]:
        raise BoxError(f"these processes have another clock: {blind}")
    ahead = 0
    while not scene.over:
        ahead = scene.rng.choice([hours for hours in (-1, 0, 1) if hours != ahead])
        scene.others += 1
        scene.clock.step(ahead * 3600)
        await scene.pause()


async def _again(scene: Scene, between: Callable[[], None] = lambda: None) -> None:
    """The server ends as it should, and starts again."""
    scene.moments.append(time.monotonic())
    async with _away(scene):
        kill(scene.box.pid, signal.SIGTERM)
        await scene.box.killed()
        between()
        await scene.box.start()
    scene.moments.append(time.monotonic())


@asynccontextmanager
async def _away(scene: Scene) -> AsyncIterator[None]:
    """For as long as the block runs there is no server, on purpose."""

    async def note() -> None:
        while True:
            scene.away.append(time.monotonic())
            await asyncio.sleep(0.5)

    noting = asyncio.create_task(note())
    try:
        yield
    finally:
        noting.cancel()


def _damage(path: Path, rng: random.Random) -> None:
    """Some bytes are others, or the end is missing."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if rng.random() < 0.5:
            file.truncate(rng.randrange(size))
        else:
            file.seek(rng.randrange(size))
            file.write(rng.randbytes(16))


async def end_group(scene: Scene) -> None:
    """SIGTERM to every process of the server with 100 streams open, then a fresh start."""
    while not scene.over:
        await scene.traffic.burst(100)
        await scene.pause(1.0)
        scene.moments.append(time.monotonic())
        async with _away(scene):
            for pid in [scene.box.pid, *machine.tree(scene.box.pid)]:
                kill(pid, signal.SIGTERM)
            await scene.box.killed()
            await scene.box.start()
        scene.moments.append(time.monotonic())
        await scene.pause(10.0)


async def kill_supervisor(scene: Scene) -> None:
    while not scene.over:
        await scene.box.status()
        scene.moments.append(time.monotonic())
        async with _away(scene):
            kill(scene.box.pid, signal.SIGKILL)
            await scene.box.killed()
            await asyncio.sleep(ORPHANS_S)
            scene.broken += scene.box.orphans()
            try:
                await scene.box.start()
            except BoxError as error:
                scene.broken.append(f"no fresh start: {error}")
                return
        scene.moments.append(time.monotonic())
        await scene.pause(8.0)


def write_heat(sysfs: Path, cpu: int, degrees: int) -> None:
    """One core's temperature in a tree that `make_heat_tree` made."""
    chip = sysfs / "class/hwmon/hwmon0"
    (chip / f"temp{cpu + 2}_input").write_text(f"{degrees * 1000}\n", encoding="ascii")


def make_heat_tree(sysfs: Path) -> None:
    """This machine's /sys, but for a coretemp chip with a sensor for each core."""
    chip = sysfs / "class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    for entry in Path("/sys").iterdir():
        if entry.name != "class":
            (sysfs / entry.name).symlink_to(entry)
    for entry in Path("/sys/class").iterdir():
        if entry.name not in ("hwmon", "thermal"):
            (sysfs / "class" / entry.name).symlink_to(entry)
    (chip / "name").write_text("coretemp\n", encoding="ascii")
    for cpu in machine.cores():
        (chip / f"temp{cpu + 2}_label").write_text(f"Core {cpu}\n", encoding="ascii")
        (chip / f"temp{cpu + 2}_max").write_text("100000\n", encoding="ascii")
        write_heat(sysfs, cpu, 45)
