"""All faults by name, in the order in which they are tried."""

from __future__ import annotations

from faults import breaking, rude
from faults.scene import Fault, Kind

_AGAIN = ("--restart-budget", "1000")
"""Of workers that are killed every 2 s: with the usual budget they would wait for the operator."""

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "kill-worker",
            "kill -9 a worker every 2 s",
            Kind.WORKER,
            breaking.kill_workers,
            flags=_AGAIN,
        ),
        Fault(
            "stop-worker",
            "SIGSTOP a worker every 2 s",
            Kind.WORKER,
            breaking.stop_workers,
            flags=_AGAIN,
        ),
        Fault(
            "memory-limit",
            "a worker grows over its memory limit",
            Kind.WORKER,
            breaking.grow_workers,
            flags=(*_AGAIN, "--ctx-size", "1024", "--memory-limit", "400M"),
            mixable=False,
        ),
        Fault(
            "kill-fork-server",
            "kill -9 the fork server every 2 s",
            Kind.WORKER,
            breaking.kill_fork_server,
        ),
        Fault("operate", "drain, resume, restart, scale", Kind.WORKER, breaking.operate),
        Fault("roll", "rolling restarts in a loop", Kind.WORKER, breaking.roll),
        Fault("hog", "another program on each core in turn", Kind.WORKER, breaking.hog),
        Fault("heat", "heat that wanders over the cores", Kind.WORKER, breaking.heat, heat=True),
        Fault(
            "descriptors",
            "2,000 idle connections, then a gateway that may open nothing more",
            Kind.SERVICE,
            breaking.use_up_descriptors,
            mixable=False,
        ),
        Fault(
            "logs",
            "nobody reads the log, workers die",
            Kind.WORKER,
            breaking.close_logs,
            flags=_AGAIN,
            to_pipe=True,
            mixable=False,
        ),
        Fault(
            "model",
            "the model's file is overwritten and replaced",
            Kind.WORKER,
            breaking.replace_model,
            own_model=True,
            mixable=False,
        ),
        Fault(
            "reload",
            "the configuration changes in a loop, servers take over from each other",
            Kind.WORKER,
            breaking.reload,
            reloads=True,
            mixable=False,
        ),
        Fault(
            "states",
            "files of KV states are damaged between two starts",
            Kind.SERVICE,
            breaking.damage_states,
            state_dir=True,
            mixable=False,
        ),
        Fault(
            "disk",
            "the disk of log and KV states is full, workers die, the server starts again",
            Kind.SERVICE,
            breaking.fill_disk,
            flags=(*_AGAIN, "--state-cache", "16M"),
            state_dir=True,
            small_disk=True,
            mixable=False,
        ),
        Fault(
            "clock",
            "the wall clock jumps by an hour or two",
            Kind.WORKER,
            breaking.step_clock,
            flags=("--state-cache", "16M"),
            state_dir=True,
            own_clock=True,
            mixable=False,
        ),
        Fault("vanish", "clients that hang up", Kind.WORKER, rude.crowd(rude.vanish)),
        Fault(
            "read-nothing", "clients that read nothing", Kind.WORKER, rude.crowd(rude.read_nothing)
        ),
        Fault(
            "creep",
            "clients that send a byte a second",
            Kind.WORKER,
            rude.crowd(rude.creep, at_once=128),
        ),
        Fault("babble", "clients that send garbage", Kind.WORKER, rude.crowd(rude.babble)),
        Fault("kill-gateway", "kill -9 the gateway", Kind.SERVICE, breaking.kill_gateway),
        Fault(
            "end-group",
            "SIGTERM to all processes with 100 streams, and a fresh start",
            Kind.SERVICE,
            breaking.end_group,
            mixable=False,
        ),
        Fault(
            "kill-supervisor",
            "kill -9 the supervisor, and a fresh start",
            Kind.SERVICE,
            breaking.kill_supervisor,
            mixable=False,
        ),
    )
}
