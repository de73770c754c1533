"""Whether niceness means anything between this server and other programs.

Linux weighs a process against those of its own scheduling group only. With autogroup (the default
of most distributions) every session is such a group, and a service or container that has the CPU
controller is one: beside a busy program of another group each gets half of a core, however nice.
"""

from __future__ import annotations

from lbhost.machine import tree
from lbhost.machine.cgroup import locate
from lbhost.machine.tree import Roots


def counts(roots: Roots) -> bool:
    """Whether a worker's nice value counts beside a program that somebody else has started."""
    autogroup = tree.integer(roots.procfs / "sys/kernel/sched_autogroup_enabled")
    return not autogroup and not locate(roots).shares_cpu()
