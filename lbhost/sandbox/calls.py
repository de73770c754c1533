"""What the sandbox needs of libc."""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_KEPT_CAPABILITIES = sum(1 << bit for bit in (1, 2, 23))
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root serves models that are other users'. CAP_SYS_NICE:
`--nice` may be negative."""

libc = ctypes.CDLL(None, use_errno=True)


def no_new_privileges() -> None:
    """No program that is run from here on gets more rights than this process. Raises OSError."""
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def no_core_dumps() -> None:
    """What is in this process's memory, prompts and keys too, is never written to a disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def least_capabilities() -> None:
    """Of root's rights keep those to files of others, which Landlock bounds, and to priorities.

    CAP_PERFMON for one shows the environment of every process, the API key too. Of the calling
    thread and all it will start. Raises OSError.
    """
    head = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    _checked(libc.capget(head, held))
    words = struct.unpack("=6I", held.raw)  # effective, permitted, inheritable; then the upper half
    low = [word & _KEPT_CAPABILITIES for word in words[:3]]
    _checked(libc.capset(head, struct.pack("=6I", *low, 0, 0, 0)))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
