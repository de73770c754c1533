"""The board: one memfd page of shared truth, mapped by supervisor, gateway and workers.

Owns the layout and the typed rows; board_table.py has how a row is written and read. Every table
has exactly one writing process (named in its row's docstring); readers never block writers. It
never decides anything and holds no request data. A reading that the machine does not offer is
None: never 0.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import struct
import weakref
from typing import Annotated

import msgspec

from lbhost.board_table import ALIGN, R, Table
from lbhost.errors import LbhostError
from lbhost.model_entry import MOST_MODELS


class WorkerState(enum.IntEnum):
    """States of a worker; names in lower case are what status shows. See supervisor/lifecycle."""

    STOPPED = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    RESTING = 4
    STOPPING = 5
    BACKOFF = 6
    FAILED = 7


class Wanted(enum.IntEnum):
    """What the operator wants of a worker, kept apart from what it is."""

    DOWN = 0
    UP = 1


Text32 = Annotated[str, 32]
Text64 = Annotated[str, 64]
MOST_CPUS = 8192
"""As many as a kernel can be built for; the largest CPU number is one less."""
CpuSet = Annotated[tuple[int, ...], MOST_CPUS // 8]
"""CPU numbers, ascending; on the page a bit each, so that no list is too long."""

MOST_STEP_TIMES = 16
StepTimes = Annotated[tuple[float, ...], 4 * MOST_STEP_TIMES]
"""Seconds of a decode step of 1, 2, … sequences."""


class IdentityRow(msgspec.Struct, frozen=True):
    """Who a worker is. Writer: supervisor."""

    present: bool = False
    """Whether this row belongs to a worker at all; rows of scaled-down workers are absent."""
    epoch: int = 0
    """Counts the processes that have been this worker; names one process together with the id."""
    state: WorkerState = WorkerState.STOPPED
    wanted: Wanted = Wanted.DOWN
    pid: int = 0
    gpu: int = -1
    """Index of the GPU's row, -1 for a CPU worker."""
    cpus: CpuSet = ()
    """CPU numbers it is pinned to."""
    slots: int = 0
    n_ctx: int = 0
    """Tokens per slot."""
    started_ns: int = 0
    """CLOCK_MONOTONIC when the process became READY."""
    restarts: int = 0
    health_kills: int = 0
    """How often it was killed because it made no progress."""
    memory_restarts: int = 0
    """How often it was replaced because it was over its memory limit."""
    last_exit: Text64 = ""
    model: int = 0
    """Which of the server's models it computes."""


class ProgressRow(msgspec.Struct, frozen=True):
    """What a worker's engine loop is doing. Writer: the worker, at least once per micro-batch."""

    epoch: int = 0
    heartbeat_ns: int = 0
    """CLOCK_MONOTONIC of the last sign of progress."""
    steps: int = 0
    predicted_step_s: float = 0.0
    """How long the worker expects the step it is in to take: liveness is judged by it."""
    slots_busy: int = 0
    waiting: int = 0
    prefill_pending: int = 0
    """Prompt tokens admitted or waiting in the worker and not yet computed."""
    kv_used: int = 0
    kv_total: int = 0
    prefill_tok_s: float | None = None
    """EWMA of prefill speed, tokens/s of the worker's own CPU time."""
    step_base_s: float | None = None
    step_seq_s: float | None = None
    """A decode step of n sequences takes about step_base_s + n * step_seq_s of CPU time…"""
    steps_s: StepTimes = ()
    """…and more exactly this for the first numbers of them: see worker/step_times.py."""
    rss_bytes: int = 0
    tokens_out: int = 0
    prompt_tokens: int = 0
    """Prompt tokens that this process has computed; those reused from a cache do not count."""
    wide_steps: int = 0
    """Steps that were computed with lent CPUs too."""
    lent: CpuSet = ()
    """Lent CPUs that the newest step took; a CPU worker's own are its identity's."""
    adapter_switches: int = 0
    """Times that this process changed the LoRA adapter that it computes with."""


class TrafficRow(msgspec.Struct, frozen=True):
    """What the gateway has sent to a worker and seen of it. Writer: gateway."""

    epoch: int = 0
    in_flight: int = 0
    pending_tokens: int = 0
    """Prompt tokens sent to it whose first output token has not been seen."""
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_out_s: float = 0.0
    """Output tokens per second over the last second or so."""
    ttft_s: float | None = None
    inter_token_s: float | None = None
    """Means of this process' requests, like ttft_s; None a minute after the newest reading."""
    errors: int = 0
    timeouts: int = 0
    error_rate: float = 0.0
    """EWMA over requests, 0 to 1; halves in 10 s."""
    prompt_tokens_s: float = 0.0
    """Prompt tokens that it computed per second, over the last few seconds."""
    ttft_error: float | None = None
    completion_error: float | None = None
    """Medians of the relative errors' sizes of what the router predicted for its last requests."""


class CoreRow(msgspec.Struct, frozen=True):
    """One logical CPU, sampled. Writer: supervisor's sampler. The row index is the CPU number."""

    sampled_ns: int = 0
    idle: float | None = None
    """Fraction of the last interval that the CPU was idle."""
    others: float | None = None
    """Fraction used by anything but the worker pinned there (steal counts as others')."""
    freq_ratio: float | None = None
    """Current over maximum frequency."""
    temp_c: float | None = None
    throttle_s: float | None = None
    """New thermal throttle events per second, over the last few seconds."""
    steal: float | None = None
    niced: float | None = None
    """The part of `others` that runs at lowered priority."""
    warm_c: float | None = None
    hot_c: float | None = None
    """The chip's own limits for its sensor; None where it gives none."""
    sensor: int = -1
    """Which sensor temp_c is of: CPUs with the same number have the same one. -1: none."""
    sensor_cores: int = 0
    """How many physical cores that sensor speaks for."""
    lasting: float | None = None
    """`others` smoothed over a second: what the router believes; see machine/cpustat.py."""
    lead: bool = False
    """Whether this is the CPU that a worker uses of its physical core."""
    llc: int = 0
    """Cores with the same number share their last-level cache."""
    node: int = 0
    efficiency: bool = False
    foreign: float | None = None
    """`lasting` without what the server's own processes use: by it a core is lent or not."""

    @property
    def usual_others(self) -> float | None:
        """What others use, but for what comes and goes by the moment; None if unknown."""
        return self.others if self.lasting is None else self.lasting


class GpuRow(msgspec.Struct, frozen=True):
    """One GPU, by NVML. Writer: supervisor's sampler."""

    sampled_ns: int = 0
    uuid: Text64 = ""
    name: Text64 = ""
    utilisation: float | None = None
    """0 to 1."""
    memory_used: float | None = None
    memory_total: float | None = None
    temp_c: float | None = None
    clock_limit: Text32 = ""
    """What holds the clocks down ("thermal", "power", "thermal,power"); empty when nothing does."""


class HostRow(msgspec.Struct, frozen=True):
    """The whole box. Writer: supervisor's sampler. Pressure is PSI's `some avg10`, 0 to 1."""

    sampled_ns: int = 0
    psi_cpu: float | None = None
    psi_memory: float | None = None
    psi_io: float | None = None
    memory_total: float | None = None
    memory_available: float | None = None
    quota_cpus: float | None = None
    """CPUs' worth of time that the cgroup allows; None without a quota."""
    throttled: float | None = None
    """Fraction of the last interval's quota periods in which the cgroup was throttled."""
    oom_kills: int = 0
    """Processes of the cgroup that the kernel has ended for want of memory, as far as was seen."""


class GatewayRow(msgspec.Struct, frozen=True):
    """The gateway as a whole. Writer: gateway."""

    pid: int = 0
    heartbeat_ns: int = 0
    queue_depth: int = 0
    queue_limit: int = 0
    in_flight: int = 0
    connections: int = 0
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    requests_s: float = 0.0
    tokens_s: float = 0.0
    ttft_p50_s: float | None = None
    """Over the requests of the last minute or so."""
    ttft_p95_s: float | None = None
    ttft_p95_queue_s: float | None = None
    ttft_p95_prefill_s: float | None = None
    ttft_p95_step_s: float | None = None
    """What that request spent it on: waiting, its prompt, the step that made the first token."""
    next_start_s: float | None = None
    """Predicted wait of a request that would come now; None while none waits."""
    prompt_tokens_s: float = 0.0
    """Prompt tokens that all workers computed per second."""
    oldest_wait_s: float | None = None
    """How long the oldest queued request has waited."""
    error_rate: float | None = None
    """Failed requests over ended ones in the last minute, refused ones left out."""
    states: int = 0
    state_bytes: int = 0
    state_limit: int = 0
    """KV states in the store, the bytes that they take, and those that they may take now."""
    state_hits: int = 0
    state_misses: int = 0
    state_tokens: int = 0
    """Tokens that workers took from states instead of computing them."""
    state_failures: int = 0
    states_movable: bool = True
    """False: this model's states cannot be moved."""


class ModelRow(msgspec.Struct, frozen=True):
    """One model's part of GatewayRow, which is the sum. Writer: gateway. The row index is the
    model's number."""

    heartbeat_ns: int = 0
    name: Text64 = ""
    kind: Text32 = ""
    queue_depth: int = 0
    in_flight: int = 0
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    requests_s: float = 0.0
    tokens_s: float = 0.0
    prompt_tokens_s: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    oldest_wait_s: float | None = None
    error_rate: float | None = None
    work_s: float = 0.0
    """What all requests that have come since the gateway started take, in seconds of a worker that
    has all its slots taken: as predicted, and put right when they end."""
    backlog_s: float = 0.0
    """The same of those that wait."""


class ScaleRow(msgspec.Struct, frozen=True):
    """What the gateway has to know of a model's scaling. Writer: supervisor. The row index is the
    model's number."""

    asleep: bool = False
    """It has no workers, on purpose: the first request brings one."""


_MAGIC = 0x6C62686F73743031  # "lbhost01"
_HEADER = struct.Struct("<QIII")


class BoardError(LbhostError):
    """The descriptor is not a board of this version."""


class Board:
    """All tables over one memfd. Create in the supervisor, attach everywhere else by fd.

    Owns the descriptor, until `close` or its own end.
    """

    def __init__(self, fd: int, workers: int, cores: int, gpus: int) -> None:
        self.fd = fd
        self._closer = weakref.finalize(self, os.close, fd)
        self._closer.atexit = False
        size = _size(workers, cores, gpus)
        self._map = mmap.mmap(fd, size)
        page = memoryview(self._map)
        offset = ALIGN

        def table(row: type[R], rows: int) -> Table[R]:
            nonlocal offset
            made = Table(page, offset, row, rows)
            offset += Table.bytes_needed(row, rows)
            return made

        self.identity = table(IdentityRow, workers)
        self.progress = table(ProgressRow, workers)
        self.traffic = table(TrafficRow, workers)
        self.cores = table(CoreRow, cores)
        self.gpus = table(GpuRow, gpus)
        self.host = table(HostRow, 1)
        self.gateway = table(GatewayRow, 1)
        self.models = table(ModelRow, MOST_MODELS)
        self.scale = table(ScaleRow, MOST_MODELS)

    @classmethod
    def create(cls, *, workers: int, cores: int, gpus: int) -> Board:
        """A fresh board with room for so many workers, logical CPUs and GPUs."""
        fd = os.memfd_create("lbhost-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _size(workers, cores, gpus))
        # Every child maps it: one that cut it off would end all others with SIGBUS.
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        board = cls(fd, workers, cores, gpus)
        _HEADER.pack_into(board._map, 0, _MAGIC, workers, cores, gpus)
        return board

    def close(self) -> None:
        """Close the descriptor; what is mapped stays so."""
        self._closer()

    @classmethod
    def attach(cls, fd: int) -> Board:
        """Map a board made elsewhere.

        Raises:
            BoardError: fd holds something else.
        """
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise BoardError("the board's descriptor is empty")
        magic, workers, cores, gpus = _HEADER.unpack(header)
        if magic != _MAGIC or os.fstat(fd).st_size != _size(workers, cores, gpus):
            raise BoardError("the board's descriptor holds another version of the board")
        return cls(fd, workers, cores, gpus)


def _size(workers: int, cores: int, gpus: int) -> int:
    rows = (
        (IdentityRow, workers),
        (ProgressRow, workers),
        (TrafficRow, workers),
        (CoreRow, cores),
        (GpuRow, gpus),
        (HostRow, 1),
        (GatewayRow, 1),
        (ModelRow, MOST_MODELS),
        (ScaleRow, MOST_MODELS),
    )
    return ALIGN + sum(Table.bytes_needed(row, n) for row, n in rows)
