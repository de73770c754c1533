"""The shapes of the admin API's answers: what `lbhost status --json` prints.

This is a promise to users: fields are added, never renamed or dropped. The supervisor fills
them in, the CLI and the TUI read them. Times are seconds, sizes bytes, fractions 0 to 1;
null means that the machine does not offer the reading or nothing has been measured yet.
"""

from __future__ import annotations

import msgspec


class CoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One logical CPU."""

    cpu: int
    idle: float | None = None
    others: float | None = None
    """Fraction used by anything but the worker pinned there."""
    freq_ratio: float | None = None
    temp_c: float | None = None
    throttle_s: float | None = None
    """New thermal throttle events per second."""
    steal: float | None = None
    worker: int | None = None
    """Whose home core this is; where several models' workers are at home there, the first's."""
    lent_to: int | None = None
    """The worker that computes on it now beside its own cores."""
    workers: list[int] = []
    """All that are at home there, at most one of each model."""


class GpuStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU."""

    index: int
    name: str
    uuid: str
    utilisation: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    temp_c: float | None = None
    clock_limit: str | None = None
    """What holds the clocks down: "thermal", "power", …; null when nothing does."""


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The box. Pressure is PSI's `some avg10`."""

    psi_cpu: float | None = None
    psi_memory: float | None = None
    psi_io: float | None = None
    memory_total: float | None = None
    memory_available: float | None = None
    quota_cpus: float | None = None
    throttled: float | None = None


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. `state` is starting, ready, draining, resting, stopping, stopped, backoff or
    failed."""

    id: int
    state: str
    wanted: str
    """up or down: what the operator asked for."""
    epoch: int
    pid: int | None
    cores: list[int]
    gpu: int | None
    slots: int
    slots_busy: int
    waiting: int
    in_flight: int
    """Requests that the gateway has given to it and that have not ended."""
    ctx_size: int
    prefill_pending: int
    tokens_s: float
    tokens_out: int
    ttft_s: float | None
    inter_token_s: float | None
    prefill_tok_s: float | None
    kv_used: int
    kv_total: int
    memory: int | None
    """Resident set, bytes."""
    idle: float | None
    others: float | None
    temp_c: float | None
    freq_ratio: float | None
    share: float | None
    """What the hardware leaves to it, as the router sees it."""
    errors: int
    timeouts: int
    restarts: int
    health_kills: int
    last_exit: str | None
    uptime_s: float | None
    retry_in_s: float | None
    """Until the next start, in backoff."""
    spare: bool = False
    """Stands in during a rolling restart; counts for no scaling."""
    prompt_tokens_s: float = 0.0
    """Prompt tokens computed per second."""
    heat: float | None = None
    """What heat leaves of it, 0 to 1; null where nothing tells its temperature."""
    ttft_error: float | None = None
    """Of what the router predicts for it: the median size of the relative error in the time to the
    first token, over its last 64 requests; null before the first."""
    completion_error: float | None = None
    """The same of the time to the last token."""
    lent: list[int] = []
    """Cores of others that it computes on now, beside its own."""
    step_base_s: float | None = None
    step_seq_s: float | None = None
    """A decode step of n sequences takes step_base_s + n * step_seq_s of its own core…"""
    steps_s: list[float] = []
    """…but for these: of 1, 2, … sequences, as measured or, between two that were, estimated."""
    memory_own: int | None = None
    """Bytes that it has taken for itself since it was made: the weights that all share do not
    count."""
    memory_limit: int | None = None
    """Bytes of them that it may have; null: no limit."""
    memory_restarts: int = 0
    """Times that it was replaced for being over that."""
    model: str = ""
    """The name of the model that it computes."""


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway or the fork server."""

    state: str
    """starting, ready, stopping or backoff."""
    pid: int | None
    restarts: int
    last_exit: str | None


class ForkServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The fork server of one NUMA node."""

    node: int | None
    """null where there is only one node."""
    state: str
    pid: int | None
    restarts: int
    last_exit: str | None
    model: str = ""
    """The name of the model whose weights it holds."""


class AdapterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter of a model."""

    name: str
    """What clients call the model with it."""
    path: str
    scale: float


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is served. Rates and waits are those of TrafficStatus, for this model."""

    name: str
    aliases: list[str]
    """What else clients may call it."""
    kind: str
    """chat, embedding or rerank."""
    path: str
    state: str
    """ready, degraded (some worker that should be up is not), starting, sleeping (its next request
    wakes it), stopped (none is wanted up) or failed."""
    failure: str | None
    """Why it has no worker and will have none by itself, or why the gateway cannot serve it; null:
    all is well, or may be yet."""
    ctx_size: int
    slots: int
    workers: int
    """How many there are to be."""
    workers_up: int
    min_workers: int | None
    max_workers: int | None
    """Between which numbers the load has workers come and go; null where their number is fixed."""
    scaling: str = "fixed"
    """fixed, auto (the load says how many workers there are), or pinned (it did, until an operator
    said how many)."""
    requests: int
    errors: int
    rejected: int
    in_flight: int
    queue_depth: int
    requests_s: float
    tokens_s: float
    prompt_tokens_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    oldest_wait_s: float | None
    error_rate: float | None
    adapters: list[AdapterStatus] = []
    """Its LoRA adapters."""


class TrafficStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's totals and rates."""

    requests: int
    errors: int
    rejected: int
    in_flight: int
    queue_depth: int
    queue_limit: int
    connections: int
    requests_s: float
    tokens_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    """Over the requests of the last minute, like ttft_p50_s; null without any."""
    prompt_tokens_s: float = 0.0
    """Prompt tokens computed per second."""
    oldest_wait_s: float | None = None
    """How long the oldest request has been waiting for a worker; null when none waits."""
    error_rate: float | None = None
    """Failed requests over ended ones in the last minute, 0 to 1; null without any."""
    ttft_p95_queue_s: float | None = None
    ttft_p95_prefill_s: float | None = None
    ttft_p95_step_s: float | None = None
    """What the request that is the p95 spent its ttft_p95_s on: before its worker had it, on its
    prompt, on the step that its first token came from."""
    next_start_s: float | None = None
    """How long a request that came now is predicted to wait for a worker; null while none waits."""


class StatesStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The store of KV states, which any worker goes on from. Totals since the gateway started."""

    movable: bool = True
    """False: this model's states cannot be moved between workers; nothing is kept."""
    entries: int = 0
    bytes: int = 0
    limit: int = 0
    """Bytes that they may take now: the setting, or less while memory is short."""
    hits: int = 0
    """Requests for which a worker took a state over."""
    misses: int = 0
    """Requests for which there was none."""
    tokens: int = 0
    """That workers took from states instead of computing them."""
    failures: int = 0
    """States that were of no use where they arrived; their tokens were computed."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /status`."""

    version: str
    pid: int
    model: str
    """The name that clients use; of several models, the first one's, like model_path and kind."""
    model_path: str
    endpoint: str
    """`http://127.0.0.1:8080`."""
    runtime_dir: str
    state: str
    """starting, ready, degraded (some worker that should be up is not) or stopping."""
    policy: str
    uptime_s: float
    rolling: str | None
    """What a rolling restart is doing ("worker 1, 1 of 2 done"), null when none runs."""
    workers: list[WorkerStatus]
    gateway: ProcessStatus
    template: ProcessStatus | None
    """The fork server, which holds the weights, under the name that it had at first; null where
    only GPUs work. Where there are several, the first of those that are not ready."""
    traffic: TrafficStatus
    cores: list[CoreStatus]
    gpus: list[GpuStatus]
    host: HostStatus
    fork_servers: list[ForkServerStatus] = []
    """One for each NUMA node that has workers."""
    states: StatesStatus = StatesStatus()
    kind: str = "chat"
    """What the model is served for: chat, embedding or rerank."""
    models: list[ModelStatus] = []
    """All that are served, in the order of the configuration."""
    warnings: list[str] = []
    """What of the server does not work now, and what to do: a line each."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the event log. `GET /events` sends each as an SSE `data:` line."""

    seq: int
    """Counts from 1; the SSE `id`, so that a client resumes with Last-Event-ID."""
    time: float
    """Unix time, seconds."""
    level: str
    """info, warning or error."""
    kind: str
    """worker_state, worker_exit, health_kill, gateway, fork_server, operator, rolling, reload,
    handover, autoscale, server."""
    worker: int | None
    message: str
    """One line for a person."""


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line that a worker's processes have written. `GET /workers/{id}/log` sends each as an SSE
    `data:` line."""

    seq: int
    """Counts from 1, over all processes of the worker; the SSE `id`."""
    time: float
    """When it was read: Unix time, seconds."""
    epoch: int
    """Which of its processes wrote it."""
    level: str
    """debug, info, warning, error or critical; empty: the line does not say."""
    message: str
    """Printable, of 2,000 characters at most."""


class RequestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One live request: from its tokens being counted to its answer's end. Tells no text."""

    id: str
    """Its x-request-id: the client's own, so that two may have the same."""
    model: str
    key: str
    """The name of its API key; empty: it came without."""
    tier: str
    """Its service tier: priority, default or flex."""
    state: str
    """queued, prefill or decode; of a request with several answers the furthest."""
    workers: list[int]
    """Who computes it now."""
    prompt_tokens: int
    prompt_done: int
    """Those of them that are computed or were cached, as far as can be told."""
    tokens_out: int
    tokens_s: float | None
    """Output tokens per second since its first one; null before the second."""
    max_tokens: int
    """Output tokens that it may have."""
    age_s: float
    """Since its arrival."""
    starts_in_s: float | None
    """Predicted, while it is queued, until a worker has room for it; else null."""
    ends_in_s: float | None
    """Predicted; null where nothing is known."""
    answers: int
    """Generated for it at once: more than 1 with `n`, several prompts, or many inputs."""
    stream: bool


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /requests`: the live requests, the oldest first."""

    requests: list[RequestStatus]
    total: int
    """How many there are; more than are told here with a `limit`."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a POST answers: with `?wait=1` (the default) after it has happened, else at once."""

    ok: bool
    message: str
