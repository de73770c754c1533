"""What the sandbox needs of libc."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)


def no_new_privileges() -> None:
    """No program that is run from here on gets more rights than this process. Raises OSError."""
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def no_core_dumps() -> None:
    """What is in this process's memory, prompts and keys too, is never written to a disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
