"""`GET /status`, assembled from the board and the supervisor's records. Only reads.

What this shows informs; nothing that changes state may be decided by it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from lbhost.board import (
    Board,
    CoreRow,
    GatewayRow,
    GpuRow,
    HostRow,
    ModelRow,
    ProgressRow,
    TrafficRow,
)
from lbhost.config import Settings
from lbhost.machine.topology import Topology
from lbhost.placement.heat import limits_of
from lbhost.placement.share import core_heat, heat, share
from lbhost.status import (
    AdapterStatus,
    CoreStatus,
    GpuStatus,
    HostStatus,
    ModelStatus,
    StatesStatus,
    TrafficStatus,
    WorkerStatus,
)
from lbhost.supervisor import lifecycle
from lbhost.supervisor.cores import Ledger
from lbhost.supervisor.desired import ModelWanted
from lbhost.supervisor.fleet import Fleet, Served
from lbhost.supervisor.worker import Worker, wanted

GATEWAY_FRESH_NS = 5_000_000_000
"""It writes four times a second. What an older row says of the moment is not shown."""


class Assembly:
    """Turns board rows into the shapes of status.py."""

    def __init__(self, settings: Settings, board: Board, *, nice_counts: bool = True) -> None:
        """`nice_counts`: as the gateway's readings have it, for what the router sees."""
        self.settings = settings
        self._board = board
        self._nice_counts = nice_counts

    def workers(self, fleet: Fleet, topology: Topology) -> list[WorkerStatus]:
        """Every worker, by id."""
        host = self._board.host.read(0)
        fresh = _fresh(self._board.gateway.read(0))
        found = [
            self._worker(worker, model, host, topology, fresh=fresh)
            for model in fleet
            for worker in model.pool.workers.values()
        ]
        return sorted(found, key=lambda worker: worker.id)

    def models(self, fleet: Fleet) -> list[ModelStatus]:
        """Every model, by number."""
        return [self._model(number, model) for number, model in enumerate(fleet)]

    def _model(self, number: int, model: Served) -> ModelStatus:
        made, desired = model.made, model.pool.desired
        scaled = desired.settings.autoscaled
        members = desired.members()
        row = self._board.models.read(number) or ModelRow()
        if time.monotonic_ns() - row.heartbeat_ns > GATEWAY_FRESH_NS:
            row = ModelRow(requests=row.requests, errors=row.errors, rejected=row.rejected)
        up = [worker for worker in model.pool.workers.values() if worker.state in lifecycle.UP]
        return ModelStatus(
            name=made.name,
            aliases=list(desired.aliases),
            kind=made.info.purpose.kind.value,
            path=made.file.path,
            state=model.state,
            failure=model.hopeless or model.refused,
            ctx_size=made.n_ctx,
            slots=desired.slots,
            workers=len(members),
            workers_up=len(up),
            min_workers=desired.settings.least_workers if scaled else None,
            max_workers=model.most if scaled else None,
            scaling=_scaling(desired),
            requests=row.requests,
            errors=row.errors,
            rejected=row.rejected,
            in_flight=row.in_flight,
            queue_depth=row.queue_depth,
            requests_s=row.requests_s,
            tokens_s=row.tokens_s,
            prompt_tokens_s=row.prompt_tokens_s,
            ttft_p50_s=row.ttft_p50_s,
            ttft_p95_s=row.ttft_p95_s,
            oldest_wait_s=row.oldest_wait_s,
            error_rate=row.error_rate,
            adapters=[
                AdapterStatus(name=one.name, path=one.file.path, scale=one.scale)
                for one in made.adapters
            ],
        )

    def _worker(
        self,
        worker: Worker,
        model: Served,
        host: HostRow | None,
        topology: Topology,
        *,
        fresh: bool,
    ) -> WorkerStatus:
        want, settings = model.pool.wanted(worker), model.pool.desired.settings
        progress = self._board.progress.read(worker.id)
        if progress is None or progress.epoch != worker.epoch:
            progress = ProgressRow()
        traffic = self._board.traffic.read(worker.id) or TrafficRow()
        now = traffic if fresh and traffic.epoch == worker.epoch else TrafficRow()
        gpu = self._gpu(worker.place.gpu)
        cpus = worker.cpus(want)
        cores = [self._core(cpu) for cpu in cpus]
        known = [core for core in cores if core is not None]
        alive = worker.state in lifecycle.ALIVE
        up = worker.state in lifecycle.SERVING and worker.ready_ns
        left = None
        if up:
            left = share(
                cores,
                host=host,
                gpu=gpu,
                siblings=[self._core(i) for i in topology.siblings(cpus)],
                nice=self.settings.nice if self._nice_counts else 0,
                warm_c=self.settings.warm_c,
                hot_c=self.settings.hot_c,
            )
        retry = worker.retry_at_s
        return WorkerStatus(
            id=worker.id,
            state=worker.state.name.lower(),
            wanted=wanted(want).name.lower(),
            epoch=worker.epoch,
            pid=worker.pid,
            cores=list(cpus),
            gpu=worker.place.gpu,
            slots=worker.slots,
            slots_busy=progress.slots_busy if alive else 0,
            waiting=progress.waiting if alive else 0,
            in_flight=now.in_flight,
            ctx_size=worker.n_ctx,
            prefill_pending=progress.prefill_pending if alive else 0,
            tokens_s=now.tokens_out_s if alive else 0.0,
            prompt_tokens_s=now.prompt_tokens_s if alive else 0.0,
            tokens_out=traffic.tokens_out,
            ttft_s=now.ttft_s,
            inter_token_s=now.inter_token_s,
            prefill_tok_s=progress.prefill_tok_s,
            step_base_s=progress.step_base_s,
            step_seq_s=progress.step_seq_s,
            steps_s=list(progress.steps_s),
            kv_used=progress.kv_used if alive else 0,
            kv_total=progress.kv_total if alive else 0,
            memory=(progress.rss_bytes or None) if alive else None,
            idle=_least(core.idle for core in known) if gpu is None else _idle(gpu),
            others=_most(core.others for core in known),
            temp_c=_most(core.temp_c for core in known) if gpu is None else gpu.temp_c,
            freq_ratio=_least(core.freq_ratio for core in known),
            share=left,
            errors=traffic.errors,
            timeouts=traffic.timeouts,
            restarts=worker.restarts,
            health_kills=worker.health_kills,
            memory_own=worker.own_bytes if alive else None,
            memory_limit=settings.memory_limit_bytes,
            memory_restarts=worker.memory_restarts,
            last_exit=worker.last_exit or None,
            uptime_s=(time.monotonic_ns() - worker.ready_ns) / 1e9 if up else None,
            retry_in_s=None if retry is None else max(0.0, retry - time.monotonic()),
            heat=self._heat(known, gpu, len(cores)),
            spare=want.spare,
            ttft_error=traffic.ttft_error if fresh else None,
            completion_error=traffic.completion_error if fresh else None,
            lent=list(progress.lent) if alive else [],
            model=model.name,
        )

    def cores(
        self, topology: Topology, ledger: Ledger, workers: Sequence[WorkerStatus]
    ) -> list[CoreStatus]:
        """Every logical CPU of the box."""
        lent = {cpu: worker.id for worker in workers for cpu in worker.lent}
        found = []
        for cpu in topology.cpus:
            row = self._core(cpu) or CoreRow()
            owners = ledger.owners.get(cpu, ())
            found.append(
                CoreStatus(
                    cpu=cpu,
                    idle=row.idle,
                    others=row.others,
                    freq_ratio=row.freq_ratio,
                    temp_c=row.temp_c,
                    throttle_s=row.throttle_s,
                    steal=row.steal,
                    worker=owners[0] if owners else None,
                    workers=list(owners),
                    lent_to=lent.get(cpu),
                )
            )
        return found

    def gpus(self) -> list[GpuStatus]:
        """Every GPU of the box."""
        rows = [(i, self._board.gpus.read(i) or GpuRow()) for i in range(len(self._board.gpus))]
        return [
            GpuStatus(
                index=i,
                name=row.name,
                uuid=row.uuid,
                utilisation=row.utilisation,
                memory_used=row.memory_used,
                memory_total=row.memory_total,
                temp_c=row.temp_c,
                clock_limit=row.clock_limit or None,
            )
            for i, row in rows
        ]

    def host(self) -> HostStatus:
        """The box as a whole."""
        row = self._board.host.read(0) or HostRow()
        return HostStatus(
            psi_cpu=row.psi_cpu,
            psi_memory=row.psi_memory,
            psi_io=row.psi_io,
            memory_total=row.memory_total,
            memory_available=row.memory_available,
            quota_cpus=row.quota_cpus,
            throttled=row.throttled,
        )

    def traffic(self) -> TrafficStatus:
        """The gateway's totals."""
        row = self._board.gateway.read(0) or GatewayRow()
        if not _fresh(row):
            row = GatewayRow(requests=row.requests, errors=row.errors, rejected=row.rejected)
        return TrafficStatus(
            requests=row.requests,
            errors=row.errors,
            rejected=row.rejected,
            in_flight=row.in_flight,
            queue_depth=row.queue_depth,
            queue_limit=row.queue_limit or self.settings.queue_size,
            connections=row.connections,
            requests_s=row.requests_s,
            tokens_s=row.tokens_s,
            ttft_p50_s=row.ttft_p50_s,
            ttft_p95_s=row.ttft_p95_s,
            ttft_p95_queue_s=row.ttft_p95_queue_s,
            ttft_p95_prefill_s=row.ttft_p95_prefill_s,
            ttft_p95_step_s=row.ttft_p95_step_s,
            next_start_s=row.next_start_s,
            prompt_tokens_s=row.prompt_tokens_s,
            oldest_wait_s=row.oldest_wait_s,
            error_rate=row.error_rate,
        )

    def states(self) -> StatesStatus:
        """The gateway's store."""
        row = self._board.gateway.read(0)
        if row is None or not _fresh(row):
            return StatesStatus()
        return StatesStatus(
            movable=row.states_movable,
            entries=row.states,
            bytes=row.state_bytes,
            limit=row.state_limit,
            hits=row.state_hits,
            misses=row.state_misses,
            tokens=row.state_tokens,
            failures=row.state_failures,
        )

    def _heat(self, cores: list[CoreRow], gpu: GpuRow | None, count: int) -> float | None:
        limits = limits_of(self.settings.warm_c, self.settings.hot_c)
        if gpu is not None:
            return None if gpu.temp_c is None else heat(gpu.temp_c, limits)
        return _least(core_heat(core, limits, count) for core in cores if core.temp_c is not None)

    def _core(self, cpu: int) -> CoreRow | None:
        return self._board.cores.read(cpu) if cpu < len(self._board.cores) else None

    def _gpu(self, index: int | None) -> GpuRow | None:
        return None if index is None else self._board.gpus.read(index)


def _scaling(desired: ModelWanted) -> str:
    if not desired.settings.autoscaled:
        return "fixed"
    return "pinned" if desired.pinned else "auto"


def _fresh(row: GatewayRow | None) -> bool:
    return row is not None and time.monotonic_ns() - row.heartbeat_ns <= GATEWAY_FRESH_NS


def _idle(gpu: GpuRow) -> float | None:
    return None if gpu.utilisation is None else 1.0 - gpu.utilisation


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
