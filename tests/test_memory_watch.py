from __future__ import annotations

from lbhost.board import HostRow
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.memory_watch import MemoryWatch

GIB = 1 << 30


def test_memory_that_is_nearly_gone_is_told_once_and_so_is_its_return() -> None:
    events = EventLog()
    watch = MemoryWatch(events)
    for part in (None, 0.5, 0.06, 0.04, 0.01, 0.06, 0.04, 0.11, 0.06):
        left = None if part is None else part * GIB
        watch.look(HostRow(memory_total=float(GIB), memory_available=left))
    watch.look(None)
    told = [(event.level, event.message) for event in events.after(0)]
    assert told == [
        (
            "warning",
            "only 41 MiB of 1.0 GiB of memory are left: the kernel may kill a worker; "
            "see lbhost doctor",
        ),
        ("info", "113 MiB of 1.0 GiB of memory are left again"),
    ]


def test_kills_for_want_of_memory_are_told_with_what_to_do() -> None:
    events = EventLog()
    watch = MemoryWatch(events)
    for kills in (0, 1, 1, 3):
        watch.look(HostRow(oom_kills=kills))
    told = [(event.level, event.message) for event in events.after(0)]
    rest = (
        "of this server's control group for want of memory: raise its limit, or use fewer "
        "--workers or --slots or a smaller --ctx-size"
    )
    assert told == [
        ("warning", f"the kernel has ended a process {rest}"),
        ("warning", f"the kernel has ended 2 processes {rest}"),
    ]
