"""Whether a worker's own work may have ended it. Pure.

The gateway asks this of every process that ended under requests: what ends worker after worker
must not be sent to yet another one, and what was only there when somebody killed a worker must
not suffer for it; see gateway/scheduling/suspicion.py.
"""

from __future__ import annotations

_CRASHES = frozenset(
    {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP", "SIGXCPU"}
)


def by_its_work(how: str, *, asked: bool, found_hung: bool, stopped: bool) -> bool:
    """Whether what the process computed may be why it ended.

    SIGKILL counts as somebody else's, the kernel's too: a worker takes its memory when it starts,
    so that it is not the request that fills the box.

    Args:
        how: its end, as children.describe_exit puts it.
        asked: whether it was told to end.
        found_hung: whether we killed it for want of progress.
        stopped: whether it was a stopped process then (SIGSTOP, a debugger).
    """
    if found_hung:
        return not stopped
    return not asked and (how in _CRASHES or how.startswith("exit code"))
