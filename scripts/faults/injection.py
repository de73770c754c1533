"""A system call of ours in another process's name, by ptrace.

There is no switch in lbhost that makes a worker grow, none of its requests does, and none attacks.
A debugger can: it stops the process between two instructions, has it make a call, and sets
everything back. For x86_64; needs the right to trace (root, or a kernel without Yama).
"""

from __future__ import annotations

import ctypes
import os
import signal

_PEEK, _POKE, _GET_REGISTERS, _SET_REGISTERS = 1, 4, 12, 13
_SINGLE_STEP, _DETACH, _SEIZE, _INTERRUPT = 9, 17, 0x4206, 0x4207
_WAIT_ALL = 0x40000000  # __WALL: whoever its parent is
_SYSCALL = 0x050F
_RED_ZONE = 128
_MMAP = 9
_READ_WRITE = 3
_PRIVATE_ANONYMOUS_POPULATED = 0x02 | 0x20 | 0x8000
_WORD = 1 << 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)


class _Registers(ctypes.Structure):
    """user_regs_struct of x86_64."""

    _fields_ = tuple(
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx"),
            *("rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base"),
            *("gs_base", "ds", "es", "fs", "gs"),
        )
    )


class InjectionError(Exception):
    """The process cannot be made to. One line."""


def grow(pid: int, size: int) -> None:
    """Have a process take `size` bytes of memory and touch them all. Blocks until it has.

    Raises:
        InjectionError: as `call`, or there is not so much memory.
    """
    flags = _PRIVATE_ANONYMOUS_POPULATED
    result = call(pid, _MMAP, 0, size, _READ_WRITE, flags, -1, 0)
    if -4096 < result < 0:
        raise InjectionError(f"process {pid} gets no memory: {os.strerror(-result)}")


def call(pid: int, number: int, *arguments: int | bytes) -> int:
    """What a system call with up to six arguments returns to a process; -errno if it fails.

    Args:
        arguments: numbers, or bytes, which are put below its stack and passed by address.

    Raises:
        InjectionError: it is gone, may not be traced, or this is another kind of machine.
    """
    if os.uname().machine != "x86_64":
        raise InjectionError("only x86_64 processes can be made to")
    _trace(_SEIZE, pid)
    try:
        _trace(_INTERRUPT, pid)
        _stopped(pid)
        before = _Registers()
        _trace(_GET_REGISTERS, pid, data=ctypes.addressof(before))
        return _call(pid, before, number, arguments)
    finally:
        _libc.ptrace(_DETACH, pid, 0, 0)


def _call(pid: int, before: _Registers, number: int, arguments: tuple[int | bytes, ...]) -> int:
    word = _libc.ptrace(_PEEK, pid, before.rip, 0) % _WORD
    ours = _Registers.from_buffer_copy(before)
    ours.rax = number
    ours.orig_rax = _WORD - 1  # an interrupted call is not gone on with here
    room = before.rsp - _RED_ZONE
    for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        if isinstance(value, bytes):
            room = (room - len(value) - 8) & ~7
            _put(pid, room, value + b"\0")
        number_of = room if isinstance(value, bytes) else value
        setattr(ours, register, number_of % _WORD)
    try:
        _trace(_POKE, pid, before.rip, (word & ~0xFFFF) | _SYSCALL)
        _trace(_SET_REGISTERS, pid, data=ctypes.addressof(ours))
        _trace(_SINGLE_STEP, pid)
        _stopped(pid)
        _trace(_GET_REGISTERS, pid, data=ctypes.addressof(ours))
    finally:
        _libc.ptrace(_POKE, pid, before.rip, word)
        _libc.ptrace(_SET_REGISTERS, pid, 0, ctypes.addressof(before))
    result = int(ours.rax)
    return result - _WORD if result >= _WORD // 2 else result


def _put(pid: int, address: int, data: bytes) -> None:
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at : at + 8].ljust(8, b"\0"), "little")
        _trace(_POKE, pid, address + at, word)


def _trace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        reason = os.strerror(ctypes.get_errno())
        raise InjectionError(f"process {pid} cannot be traced: {reason}")


def _stopped(pid: int) -> None:
    _, status = os.waitpid(pid, _WAIT_ALL)
    if not os.WIFSTOPPED(status):
        raise InjectionError(f"process {pid} has ended")
    if os.WSTOPSIG(status) not in (signal.SIGTRAP, signal.SIGSTOP):
        name = signal.Signals(os.WSTOPSIG(status)).name
        raise InjectionError(f"process {pid} was stopped by {name}")
