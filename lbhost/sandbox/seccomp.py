"""A filter of system calls, for what Landlock leaves open: UDP, unix sockets by path, debugging.

A short list of what is refused (EPERM), not of what is allowed: that would have to name what
libc, OpenMP and CUDA of any version call. The filter is a chain of comparisons in classic BPF; no
library is needed for that, and PyPI's `pyseccomp` would need libseccomp in the system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from lbhost.sandbox.calls import libc, no_new_privileges

_SET_MODE_FILTER = 1
_SPECULATION_AS_BEFORE = 4
"""Without that flag, kernels before 5.16 slow the process down by a mitigation that is of no use
here: it is meant for interpreters of strangers' code."""
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}

_NUMBERS: dict[str, tuple[int, int]] = {
    # No way out by a new socket; links come as descriptors, and the gateway listens on one.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "io_uring_setup": (425, 425),  # does all of these, unseen by a filter
    # No look into other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    # Nothing of the system's own, which root might change.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "open_by_handle_at": (304, 265),
}
_PROGRAMS = {"execve": (59, 221), "execveat": (322, 281)}
_CLONE, _CLONE3 = (56, 220), (435, 435)


def offered() -> bool:
    """Whether this kernel filters system calls and the numbers of this machine's are known."""
    # A filter that is not there: EFAULT says that the kernel would have looked at one.
    return _set_filter(None) == errno.EFAULT


def restrict(*, programs: bool) -> bool:
    """Refuse the calls above to this thread and all that it will start.

    Args:
        programs: whether other programs may be run.

    Returns:
        False where it is not offered; nothing has changed.

    Raises:
        OSError: the kernel refuses.
    """
    if not offered():
        return False
    column = list(_ARCHITECTURES).index(os.uname().machine)
    refused = {**_NUMBERS, **({} if programs else _PROGRAMS)}
    program = _program(
        _ARCHITECTURES[os.uname().machine],
        [numbers[column] for numbers in refused.values()],
        clone=_CLONE[column],
        clone3=_CLONE3[column],
    )
    no_new_privileges()
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if number := _set_filter(head):
        raise OSError(number, os.strerror(number))
    return True


def _set_filter(program: bytes | None) -> int:
    """0, or the errno."""
    call = _SECCOMP.get(os.uname().machine)
    if call is None:
        return errno.ENOSYS
    done = libc.syscall(call, _SET_MODE_FILTER, _SPECULATION_AS_BEFORE, program) == 0
    return 0 if done else ctypes.get_errno()


def _program(architecture: int, refused: Iterable[int], *, clone: int, clone3: int) -> bytes:
    """Classic BPF over `struct seccomp_data`; jumps count the instructions that are skipped."""
    no, yes = _ERRNO | errno.EPERM, _ALLOW
    # clone3's flags lie in memory, where no filter looks: libc takes clone when it is not there.
    code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, no),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, no),
        (_IF_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in refused:
        code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, no)]
    code += [
        (_IF_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, no),
        (_RETURN, 0, 0, yes),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
