"""Landlock: a process gives up, for itself and its children, what it may reach from now on.

The kernel's three system calls (5.13 and newer) by ctypes: PyPI's `landlock` has only ever had
development releases. Knows nothing of lbhost; profiles.py says who may do what.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from lbhost.sandbox.calls import libc, no_new_privileges

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers everywhere
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_REFER = 1 << 13
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What can be granted on a path that is no folder."""

READ = READ_FILE | READ_DIR
USE = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV
"""Open for writing what is there, devices too."""
CHANGE = USE | _REMOVE_AND_MAKE | _REFER
"""All that can be done in a folder but running programs."""

_TCP = 0b11
_SCOPES = 0b11  # abstract unix sockets, signals

NETWORK_ABI = 4
SCOPE_ABI = 6


def abi() -> int:
    """The version that the kernel offers; 0 for none, or one that is switched off."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)))


def handled(version: int) -> int:
    """The rights on files that a kernel of this version can take away."""
    rights = EXECUTE | WRITE_FILE | READ | _REMOVE_AND_MAKE
    for since, right in ((2, _REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        rights |= right if version >= since else 0
    return rights


def restrict(rules: Iterable[tuple[str, int]]) -> int:
    """From now on nothing may be opened but what the rules grant.

    No TCP socket may be bound or connected either, and neither an abstract unix socket nor a
    process outside may be reached, as far as the kernel's version goes. What is open stays open.
    Of the calling thread and all it will start: to be called before there are others.

    Args:
        rules: a path, and the rights on it and all below; paths that are not there are left out.

    Returns:
        The kernel's version; 0: it has no Landlock and nothing has changed.

    Raises:
        OSError: the kernel refuses; nothing has changed.
    """
    version = abi()
    if version == 0:
        return 0
    rights = handled(version)
    attributes = struct.pack("=Q", rights)
    if version >= NETWORK_ABI:
        attributes += struct.pack("=Q", _TCP)
    if version >= SCOPE_ABI:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    try:
        for path, granted in rules:
            _add(ruleset, path, granted & rights)
        no_new_privileges()
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return version


def _add(ruleset: int, path: str, granted: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # nothing there that could be granted
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            granted &= _OF_FILES
        if granted:
            rule = struct.pack("=Qi", granted, fd)
            _checked(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
