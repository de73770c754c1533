"""A filter of system calls, for what Landlock leaves open: UDP, unix sockets by path, debugging.

A short list of what is refused (EPERM), not of what is allowed: that would have to name what
libc, OpenMP and CUDA of any version call. The filter is a chain of comparisons in classic BPF; no
library is needed for that, and PyPI's `pyseccomp` would need libseccomp in the system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import TypeAlias

from lbhost.sandbox.calls import libc, no_new_privileges

_SET_MODE_FILTER = 1
_SPECULATION_AS_BEFORE = 4
"""Without that flag, kernels before 5.16 slow the process down by a mitigation that is of no use
here: it is meant for interpreters of strangers' code."""
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_AND = 0x54
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT, _ARGUMENT_BYTES = 0, 4, 16, 8
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}

_NUMBERS: dict[str, tuple[int, int | None]] = {
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
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "open_by_handle_at": (304, 265),
    # System V's and POSIX's shared things, which belong to whoever is of this user.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # No watch over who opens and changes what.
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    # Landlock knows no right for these: a file could be opened to other users, or made unusable.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_PROGRAMS: dict[str, tuple[int, int | None]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    # The gateway, who may run programs, also dates the states that it keeps.
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
_SOCKETPAIR = (53, 199)
_SENDING = (((44, 206), 3), ((46, 211), 2), ((307, 269), 3))
"""sendto, sendmsg, sendmmsg, and which argument has the flags."""
_FAST_OPEN = 0x20000000
"""MSG_FASTOPEN: connects without `connect`, where Landlock does not look. A listening socket that
was shut down could."""
_CONTROL = (16, 29)
"""ioctl, whose second argument says what."""
_TYPING = (0x5412, 0x541C, 0x541D)
"""TIOCSTI, TIOCLINUX and TIOCCONS: the server's output may be its user's terminal, and what is
typed there is run by a shell that nobody confines."""
_LIMITS = (302, 261)
"""prlimit64: a CPU limit of 0 ends another process as a signal does."""
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
        [number for numbers in refused.values() if (number := numbers[column]) is not None],
        _by_argument(column),
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


_Code: TypeAlias = list[tuple[int, int, int, int]]
_REFUSE = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_PERMIT = (_RETURN, 0, 0, _ALLOW)


def _by_argument(column: int) -> _Code:
    """Calls that are refused with some arguments only."""
    # A datagram socket of a pair reaches any unix socket that has a path, without `connect`.
    code = _if_call(
        _SOCKETPAIR[column],
        1,
        [
            (_AND, 0, 0, 0xF),
            (_IF_EQUAL, 2, 0, socket.SOCK_STREAM),
            (_IF_EQUAL, 1, 0, socket.SOCK_SEQPACKET),
            _REFUSE,
            _PERMIT,
        ],
    )
    for numbers, argument in _SENDING:
        look = [(_IF_ANY_BIT, 0, 1, _FAST_OPEN), _REFUSE, _PERMIT]
        code += _if_call(numbers[column], argument, look)
    looks = [(_IF_EQUAL, len(_TYPING) - i, 0, kind) for i, kind in enumerate(_TYPING)]
    code += _if_call(_CONTROL[column], 1, [*looks, _PERMIT, _REFUSE])
    code += _if_call(_LIMITS[column], 0, [(_IF_EQUAL, 1, 0, 0), _REFUSE, _PERMIT])
    look = [(_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES), _REFUSE, _PERMIT]
    return code + _if_call(_CLONE[column], 0, look)


def _if_call(number: int, argument: int, look: _Code) -> _Code:
    """`look` at the lower half of an argument of this call, and end there."""
    at = _FIRST_ARGUMENT_AT + _ARGUMENT_BYTES * argument
    return [(_IF_EQUAL, 0, len(look) + 1, number), (_LOAD, 0, 0, at), *look]


def _program(
    architecture: int, refused: Iterable[int], by_argument: _Code, *, clone3: int
) -> bytes:
    """Classic BPF over `struct seccomp_data`; jumps count the instructions that are skipped."""
    # clone3's flags lie in memory, where no filter looks: libc takes clone when it is not there.
    code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_IF_EQUAL, 1, 0, architecture),
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, 0, 1, _X32_BIT),
        _REFUSE,
        (_IF_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in refused:
        code += [(_IF_EQUAL, 0, 1, number), _REFUSE]
    code += [*by_argument, _PERMIT]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
