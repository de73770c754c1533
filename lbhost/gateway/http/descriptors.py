"""How many connections and KV states the limit on open files leaves room for.

The soft limit is raised as far as the hard one allows. Out of descriptors, links from the
supervisor could not be received any more: connections and states stop before that.
"""

from __future__ import annotations

import resource

RESERVED = 48
"""Descriptors for all that is no client: links, listener, helpers, log, event loop."""

FEWEST = 8
"""Connections that are allowed however low the limit is."""


def connections_within(wanted: int) -> int:
    """The connections that may be open at once; `wanted` if the limit can be raised to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + 2 * RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return room(wanted, soft)


def states_within(wanted: int, connections: int) -> int:
    """The KV states that may be held beside so many connections."""
    taken = connections + RESERVED
    return max(FEWEST, connections_within(taken + wanted) - taken)


def room(wanted: int, limit: int) -> int:
    """Connections that fit beside everything else under a limit on open files."""
    if limit == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(FEWEST, limit - RESERVED))
