"""What lbhost is measured against: llama.cpp's own programs, from the very same sources.

Owns the cache folder: builds llama-server and llama-batched-bench once from the llama-cpp-python
sdist of the installed version, with the flags that its own build uses, and makes the Q4_0 file.
The only module here that needs the network, and only the first time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PACKAGE = "llama-cpp-python"
TARGETS = ("llama-server", "llama-batched-bench")

# As llama-cpp-python's CMakeLists.txt: Release, shared libraries, no curl; everything that decides
# speed (GGML_NATIVE, OpenMP, llamafile) at its default. The rest only leaves out what is not used.
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)

# Both sides run the same kernels: the peers get the fixes that scripts/lib/venv.sh gives to
# llama-cpp-python; where lbhost does without AMX (an unfixed build, lbhost/amx.py), so do they.
FIXES = Path(__file__).parents[1] / "lib" / "compiler_fixes.h"
WITH_FIXES = f'-include "{FIXES}"'
WITHOUT_AMX = f"{WITH_FIXES} -U__AMX_INT8__"
# As llama.cpp builds itself, but for the fix without which it crashes.
STOCK = "-DLBHOST_STOCK"


class PeerError(Exception):
    """A peer cannot be had; one line, with the log to look at."""


class Peers(NamedTuple):
    """Where they are."""

    server: Path
    batched_bench: Path
    version: str


def cache_folder() -> Path:
    """LBHOST_BENCH_CACHE, or lbhost-bench under the user's cache folder. Made if need be."""
    chosen = os.environ.get("LBHOST_BENCH_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(chosen or Path(caches) / "lbhost-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(model: Path, say: Callable[[str], None], *, stock: bool = False) -> Peers:
    """The peers, built now if they were not before: 8 to 10 minutes on two cores.

    Args:
        model: any quantised one, to see which kernels lbhost takes here.
        stock: leave out what makes llama.cpp faster than it builds itself.

    Raises:
        PeerError: no network, no compiler, or the build failed.
    """
    version = importlib.metadata.version(PACKAGE)
    flags = WITH_FIXES if _lbhost_uses_amx(model) else WITHOUT_AMX
    if stock:
        flags += f" {STOCK}"
    folder = cache_folder() / f"{PACKAGE}-{version}-{_build_key(flags)}"
    folder.mkdir(exist_ok=True)
    programs = folder / "build" / "bin"
    peers = Peers(programs / TARGETS[0], programs / TARGETS[1], version)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may be building them
        if not (folder / "done").exists():
            say(f"building {' and '.join(TARGETS)} in {folder}: 8 to 10 minutes on two cores, once")
            _fetch_sources(version, folder, say)
            _compile(folder, flags, say)
            (folder / "done").touch()
    return peers


_USES_AMX = """
import sys
from lbhost.llama import Model, api
lines = []
@api.llama_log_callback
def keep(level, text, user):
    lines.append(text)
api.llama_log_set(keep, None)
Model(sys.argv[1])
print(b"AMX model buffer" in b"".join(lines))
"""


def _lbhost_uses_amx(model: Path) -> bool:
    command = [sys.executable, "-c", _USES_AMX, str(model)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return answer.stdout.split()[-1:] == ["True"]


def cpu_flags() -> list[str]:
    """The first line of /proc/cpuinfo that says what this CPU can do, if there is one."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in cpuinfo if line.startswith(("flags", "Features"))][:1]


def _build_key(compiler_flags: str) -> str:
    """Changes with all that decides the machine code: GGML_NATIVE builds for this very CPU."""
    flags = cpu_flags()
    fixes = compiler_flags.replace(WITH_FIXES, FIXES.read_text(encoding="utf-8"))
    flags += [*CMAKE_FLAGS, fixes, os.environ.get("CMAKE_ARGS", "")]
    return hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12]


def _fetch_sources(version: str, folder: Path, say: Callable[[str], None]) -> None:
    sources = folder / "src"
    if (sources / "vendor" / "llama.cpp" / "CMakeLists.txt").exists():
        return
    say(f"fetching the sources of {PACKAGE} {version}")
    with_pip = [_tool_python(folder), "-m", "pip", "download", "--disable-pip-version-check"]
    what = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={version}", "--dest", str(folder)]
    _logged([*with_pip, *what], folder / "fetch.log", say)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"), None)
    if archive is None:
        raise PeerError(f"pip downloaded no sdist of {PACKAGE} {version} into {folder}")
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    next(unpacked.iterdir()).rename(sources)
    unpacked.rmdir()
    archive.unlink()


def _compile(folder: Path, flags: str, say: Callable[[str], None]) -> None:
    cmake = shutil.which("cmake") or _install_tool("cmake", folder, say)
    build = folder / "build"
    configure = [cmake, "-S", str(folder / "src" / "vendor" / "llama.cpp"), "-B", str(build)]
    configure += [*CMAKE_FLAGS, *os.environ.get("CMAKE_ARGS", "").split()]
    if not (build / "CMakeCache.txt").exists():
        ninja = shutil.which("ninja") or _install_tool("ninja", folder, say)
        # a build that is cut short goes on from another checkout, whatever became of this one
        fixes = shutil.copy(FIXES, folder)
        _logged(
            [*configure, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"],
            folder / "configure.log",
            say,
            flags.replace(str(FIXES), str(fixes)),
        )
    jobs = str(len(os.sched_getaffinity(0)))
    _logged(
        [cmake, "--build", str(build), "-j", jobs, "--target", *TARGETS], folder / "build.log", say
    )


def _tool_python(folder: Path) -> str:
    """A Python that has pip: this one, unless uv made its environment."""
    if importlib.util.find_spec("pip"):
        return sys.executable
    tools = folder / "tools"
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
    return str(tools / "bin" / "python")


def _install_tool(name: str, folder: Path, say: Callable[[str], None]) -> str:
    tools = folder / "tools"
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
    program = tools / "bin" / name
    if not program.exists():
        _logged(
            [str(tools / "bin" / "python"), "-m", "pip", "install", name],
            folder / f"{name}.log",
            say,
        )
    return str(program)


def _logged(
    command: list[str], log: Path, say: Callable[[str], None], compiler_flags: str = ""
) -> None:
    """Run a command at low priority with its output in a log; its last line twice a minute."""
    environ = dict(os.environ)
    for name in ("CFLAGS", "CXXFLAGS"):
        environ[name] = f"{environ.get(name, '')} {compiler_flags}".strip()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["nice", "-n", "10", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
        )
        try:
            started = time.monotonic()
            while process.poll() is None:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    say(f"  {time.monotonic() - started:4.0f} s: {_last_line(log)[:90]}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise PeerError(f"{Path(command[0]).name} failed: {_last_line(log)} (log: {log})")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace")[-4000:].splitlines()
    return lines[-1].strip() if lines else ""


_QUANTIZE = """
import ctypes, os, sys
from lbhost.llama import api
params = api.llama_model_quantize_default_params()
params.ftype = 2  # LLAMA_FTYPE_MOSTLY_Q4_0
params.allow_requantize = True
source, target = map(os.fsencode, sys.argv[1:])
sys.exit(bool(api.llama_model_quantize(source, target, ctypes.byref(params))))
"""


def requantize(model: Path, say: Callable[[str], None]) -> Path:
    """The Q4_0 re-quantisation of a model, made once. Good for measuring speed, not for answers.

    Raises:
        PeerError: llama.cpp refused.
    """
    with model.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()
    made = cache_folder() / f"{model.name.removesuffix('.gguf')}-as-Q4_0-{key[:12]}.gguf"
    if not made.exists():
        say(f"re-quantising {model.name} to Q4_0")
        half = made.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-c", _QUANTIZE, str(model), str(half)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(f"llama_model_quantize failed: {done.stderr.strip()[-300:]}")
        half.rename(made)
    return made
