"""Who may do what: one function for each kind of child, called by it before it meets a stranger.

Each says what the kernel has given; nothing is refused to start where a kernel has less, since
`lbhost doctor` and the server's first event tell that. What a process has open, its links, the
board and its output above all, it keeps.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

import lbhost
from lbhost import log
from lbhost.sandbox import landlock, seccomp
from lbhost.sandbox.calls import least_capabilities, no_core_dumps, no_new_privileges

_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/nix/store", "/gnu/store")
_LOOKED_UP = (
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
    *("/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies"),
)
"""By libc and OpenSSL. Not all of /etc: settings and keys may be there, lbhost's own too."""
_KERNEL = ("/proc", "/sys", "/dev/urandom", "/dev/null", "/dev/zero")
_WIDE = ("/tmp", "/var/tmp", "/home")
_GPU = ("/dev", "/proc")
"""CUDA opens its devices, and names its threads below /proc/self."""


class Protection(msgspec.Struct, frozen=True):
    """What a kernel offers, or has given to a process."""

    landlock: int
    """Version; 0 is none. From 4 on TCP can be refused, from 6 on signals."""
    seccomp: bool

    @property
    def complete(self) -> bool:
        """Whether everything that SECURITY.md says of this process holds."""
        return self.landlock >= landlock.SCOPE_ABI and self.seccomp

    @property
    def missing(self) -> str:
        """What does not hold, for a person; "" if everything does."""
        lacks = []
        if self.landlock == 0:
            lacks.append("no Landlock: children may open whatever this user may")
        elif self.landlock < landlock.SCOPE_ABI:
            lacks.append(
                f"Landlock's version is {self.landlock} of {landlock.SCOPE_ABI}: children may "
                "signal this user's processes"
            )
        if not self.seccomp:
            lacks.append("no filter of system calls: children may make sockets")
        return "; ".join(lacks)


def offered() -> Protection:
    """What this kernel can do for children."""
    return Protection(landlock.abi(), seccomp.offered())


def reader(
    models: Iterable[Path | str], environ: Mapping[str, str], *, writes: Iterable[Path | str] = ()
) -> Protection:
    """Who reads a model's file: programs, libraries and those files; writes nothing but `writes`.

    Runs no program and makes no socket.
    """
    rules = [*_code(environ), *((str(path), landlock.READ) for path in models)]
    rules += [(str(path), landlock.CHANGE) for path in writes]
    return _restrict(rules, programs=False)


def gateway(
    models: Iterable[Path | str],
    environ: Mapping[str, str],
    *,
    keys_file: str | None = None,
    writes: Iterable[Path | str] = (),
) -> Protection:
    """The same, and it starts its prompt helpers: programs of the system and of Python only.

    The keys file is read again when it is replaced: whatever is beside it can be read too.
    """
    code = [(path, rights | landlock.EXECUTE) for path, rights in _code(environ)]
    rules = [*code, *((str(path), landlock.READ) for path in models)]
    if keys_file is not None:
        rules.append((str(Path(keys_file).absolute().parent), landlock.READ_FILE))
    rules += [(str(path), landlock.CHANGE) for path in writes]
    return _restrict(rules, programs=True)


def worker(environ: Mapping[str, str], *, gpu: bool) -> Protection:
    """A worker that is about to serve, with everything in memory: it opens only Python's modules.

    Those, since many are imported when they are first needed (numpy's own too), and a worker must
    not end for one. A worker on a GPU still loads parts of CUDA so: it may read what its user may,
    and use devices.
    """
    if not gpu:
        return _restrict(_programs(environ), programs=False)
    rules = [("/", landlock.READ), *((path, landlock.USE) for path in _GPU)]
    return _restrict(rules, programs=False, filtered=False)


def _code(environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """What a Python program reads before and while it runs. Not the folder it was started in."""
    roots = {environ.get(name, "") for name in ("LBHOST_SYSFS_ROOT", "LBHOST_PROCFS_ROOT")}
    folders = {*_LOOKED_UP, *_KERNEL, *roots} - {"", "/"}
    there = [(path, landlock.READ) for path in sorted(folders)]
    return [*_programs(environ), *there, ("/dev/null", landlock.USE)]


def _programs(environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Python's modules and all libraries."""
    packages = {p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    package = Path(lbhost.__file__).parent
    folders = {*packages, *_libraries(), site.getusersitepackages(), str(package)}
    folders |= {sys.prefix, sys.base_prefix, sys.exec_prefix}
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        folders.update(environ.get(name, "").split(os.pathsep))
    # Python finds a package by listing the folder that it is in: a checkout, perhaps.
    listed = (str(package.parent), landlock.READ_DIR)
    # The system's whatever the home folder is: some accounts have theirs below /usr.
    readable = sorted({*_SYSTEM, *_narrow(folders)})
    return [*((path, landlock.READ) for path in readable), listed]


def _narrow(folders: Iterable[str]) -> list[str]:
    """Those that are not the home folder, everybody's, or above one of them, however written: a
    PYTHONPATH of `.` is where the server was started."""
    wide = [os.path.realpath(path) for path in (*_WIDE, os.path.expanduser("~"))]  # noqa: PTH111
    real = {os.path.realpath(path) for path in folders if path}
    return sorted(path for path in real if not any(_holds(path, one) for one in wide))


def _holds(path: str, other: str) -> bool:
    return Path(other).is_relative_to(path)


def _libraries() -> set[str]:
    """The libraries that are mapped, and what lies beside them: CUDA may be anywhere."""
    found: set[str] = set()
    with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
        for line in maps:
            path = os.fsdecode(line.rstrip(b"\n").partition(b"/")[2])
            if ".so" in path.rpartition("/")[2]:
                found |= {"/" + path, "/" + path.rpartition("/")[0]}
    return found


def _restrict(
    rules: Iterable[tuple[str, int]], *, programs: bool, filtered: bool = True
) -> Protection:
    """As far as it goes; what the kernel refuses in spite of offering it is told."""
    version = 0
    try:
        no_core_dumps()
        no_new_privileges()
        if filtered:  # a GPU's driver asks for what it likes
            least_capabilities()
        version = landlock.restrict(rules)
        filtered = filtered and seccomp.restrict(programs=programs)
    except OSError as error:
        filtered = False
        log.get().error("this process cannot be confined", error=str(error))
    return Protection(version, filtered)
