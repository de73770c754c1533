"""How many tokens of context fit the memory. Pure.

llama.cpp clears the KV cache at start, so all of it is resident from the first second:
workers x slots x tokens x bytes per token, beside the weights (read into memory, one copy for
each fork server, of which there is one per NUMA node) and each worker's compute buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost.board import GpuRow
from lbhost.errors import StartupError
from lbhost.placement.placement import Placement

DEFAULT_CONTEXT = 4096
"""Tokens per slot that nobody has to ask for: most chats end before."""
LEAST_CONTEXT = 256
"""With less a chat template leaves hardly any room to answer."""
WORKER_BYTES = 64 << 20
"""Allowance for a worker's compute buffers, page tables and Python."""
_STEP = 256
"""llama.cpp rounds a sequence's context up to a multiple of this."""
_DEFAULT_PART = 0.5
"""Part of the free memory that the default takes: the rest is the user's, and page cache."""
_MOST_PART = 0.9
"""Part that may be asked for."""
_LITTLE_PART = 0.05


def need_bytes(
    *, weights_bytes: int, kv_bytes_per_token: int, workers: int, slots: int, n_ctx: int
) -> int:
    """Memory that a server of this shape holds; `weights_bytes` of all copies."""
    kv = workers * slots * n_ctx * kv_bytes_per_token
    return weights_bytes + workers * WORKER_BYTES + kv


class Budget(msgspec.Struct, frozen=True):
    """What the workers that share one memory have between them."""

    available_bytes: int | None
    workers: int
    copies: int = 1
    """Of the weights."""


def budget(
    placements: Sequence[Placement], available_bytes: int | None, gpus: Sequence[GpuRow | None] = ()
) -> Budget:
    """CPU workers share the box; each GPU worker has its card, of which the fullest counts.

    Args:
        placements: what `plan.plan` gave.
        available_bytes: of the box; None if unknown.
        gpus: the board's GPU rows by index.
    """
    if not any(placement.gpu is not None for placement in placements):
        nodes = {placement.node for placement in placements}
        return Budget(available_bytes, len(placements), max(1, len(nodes)))
    free: list[int] = []
    for placement in placements:
        row = gpus[placement.gpu] if placement.gpu is not None else None
        if row is not None and row.memory_total is not None and row.memory_used is not None:
            free.append(int(row.memory_total - row.memory_used))
    return Budget(min(free, default=None), 1)


def fit_context(
    *,
    available_bytes: int | None,
    weights_bytes: int,
    kv_bytes_per_token: int,
    workers: int,
    slots: int,
    n_ctx_train: int,
    requested: int | None,
) -> int:
    """Tokens per slot, prompt and output together.

    Args:
        available_bytes: memory that can be taken now, before the weights are loaded; None if
            unknown, which limits nothing.
        weights_bytes: of all copies.
        n_ctx_train: the longest context the model was trained for; 0 if unknown.
        requested: `--ctx-size`, or None for the default: the least of n_ctx_train, 4096 and
            what fits in half of the available memory.

    Raises:
        StartupError: the request is over n_ctx_train, or memory does not hold it (without a
            request: not even the least useful context); one line saying what to change.
    """
    per_token = workers * slots * kv_bytes_per_token
    require_trained(requested, n_ctx_train)
    least = min(LEAST_CONTEXT, n_ctx_train or LEAST_CONTEXT)
    tokens = min(DEFAULT_CONTEXT, n_ctx_train or DEFAULT_CONTEXT)
    if available_bytes is None:
        return tokens if requested is None else requested
    fixed = need_bytes(
        weights_bytes=weights_bytes, kv_bytes_per_token=0, workers=workers, slots=0, n_ctx=0
    )
    most = _tokens(available_bytes * _MOST_PART - fixed, per_token)
    if requested is not None:
        if requested <= most:
            return requested
        raise StartupError(_refusal(requested, most, least, fixed, per_token, available_bytes))
    if most < least:
        raise StartupError(_refusal(least, most, least, fixed, per_token, available_bytes))
    fits = _tokens(available_bytes * _DEFAULT_PART - fixed, per_token)
    # A box too small for the generous half still serves, with the least useful context.
    fits = max(least, fits)
    return tokens if fits >= tokens or not per_token else max(least, fits // _STEP * _STEP)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one of several models holds of the memory that they share: see `fit_context`."""

    name: str
    weights_bytes: int
    kv_bytes_per_token: int
    workers: int
    slots: int
    n_ctx_train: int
    requested: int | None

    def tokens(self, most: int) -> int:
        """Tokens per slot where nobody whom they cost anything gets more unasked than `most`."""
        most = most if self.kv_bytes_per_token else DEFAULT_CONTEXT
        return self.requested or min(most, self.n_ctx_train or most)

    def bytes(self, most: int) -> int:
        """What it holds then."""
        return need_bytes(
            weights_bytes=self.weights_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            workers=self.workers,
            slots=self.slots,
            n_ctx=self.tokens(most),
        )


def fit_contexts(available_bytes: int | None, models: Sequence[Held]) -> list[int]:
    """Tokens per slot of each of several models: as asked for, and for those that ask for nothing
    the same for all, as far as they were trained for it: what fits in half of the memory.

    Raises:
        StartupError: memory does not hold them together; one line saying what to change.
    """
    most = DEFAULT_CONTEXT
    if available_bytes is not None:
        need = sum(model.bytes(LEAST_CONTEXT) for model in models)
        if need > available_bytes * _MOST_PART:
            each = ", ".join(f"{model.name} {gib(model.bytes(LEAST_CONTEXT))}" for model in models)
            raise StartupError(
                f"the models need {gib(need)} of memory ({each}), {gib(available_bytes)} are "
                "available: lower ctx_size, slots or workers of one, or leave one out"
            )
        half = available_bytes * _DEFAULT_PART
        while most > LEAST_CONTEXT and sum(model.bytes(most) for model in models) > half:
            most -= _STEP
    return [model.tokens(most) for model in models]


def require_trained(requested: int | None, n_ctx_train: int) -> None:
    """Raises StartupError if more tokens are asked for than the model was trained for."""
    if requested is not None and n_ctx_train and requested > n_ctx_train:
        raise StartupError(
            f"--ctx-size {requested} is more than the model was trained for: use {n_ctx_train} "
            "or less"
        )


def require_within(
    limit_bytes: int | None, kv_bytes_per_token: int, slots: int, n_ctx: int
) -> None:
    """A CPU worker's limit must leave it room for what it takes at its start.

    Args:
        limit_bytes: `--memory-limit`; None: no limit.

    Raises:
        StartupError: it does not; one line saying what to change.
    """
    need = need_bytes(
        weights_bytes=0, kv_bytes_per_token=kv_bytes_per_token, workers=1, slots=slots, n_ctx=n_ctx
    )
    if limit_bytes is not None and limit_bytes < need:
        raise StartupError(
            f"--memory-limit is {gib(limit_bytes)}, and a worker of {slots} slots with {n_ctx} "
            f"tokens each takes {gib(need)}: raise it, or lower --ctx-size or --slots"
        )


def _tokens(spare: float, per_token: int) -> int:
    """Tokens per slot that so many bytes hold; unbounded for models without a KV cache."""
    if spare < 0:
        return 0
    return int(spare // per_token) if per_token else 1 << 40


def _refusal(wanted: int, most: int, least: int, fixed: int, per_token: int, available: int) -> str:
    need = fixed + wanted * per_token
    if most >= least:
        advice = f"use --ctx-size {most} or less, or fewer --workers or --slots"
    else:
        advice = "use fewer --workers or --slots, a smaller model, or free some memory"
    return (
        f"a context of {wanted} tokens needs {gib(need)} of memory, {gib(available)} are "
        f"available: {advice}"
    )


def nearly_gone(total_bytes: float, available_bytes: float) -> bool:
    """Whether the next allocation may be the one for which the kernel kills a process."""
    return available_bytes < _LITTLE_PART * total_bytes


def gib(size: float) -> str:
    """Bytes for people: "1.5 GiB", "310 MiB"."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
