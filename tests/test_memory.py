from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.board import GpuRow
from lbhost.errors import StartupError
from lbhost.placement.memory import WORKER_BYTES, Budget, budget, fit_context, gib, need_bytes
from lbhost.placement.placement import Placement

MIB, GIB = 1 << 20, 1 << 30


def fit(
    available: int | None = 16 * GIB,
    *,
    weights: int = 100 * MIB,
    per_token: int = 20_000,
    workers: int = 2,
    slots: int = 4,
    train: int = 8192,
    requested: int | None = None,
) -> int:
    return fit_context(
        available_bytes=available,
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        workers=workers,
        slots=slots,
        n_ctx_train=train,
        requested=requested,
    )


def test_with_plenty_of_memory_the_default_is_4096_or_what_the_model_was_trained_for() -> None:
    assert fit() == 4096
    assert fit(train=2048) == 2048
    assert fit(train=0) == 4096
    assert fit(train=128) == 128


def test_the_default_takes_half_of_the_memory_in_steps_of_256() -> None:
    # Half of 1 GiB less 100 MiB of weights and 2 x 64 MiB: 297,795,584 bytes.
    # 8 slots of 20,000 bytes a token: 1861 tokens, 1792 in whole steps.
    assert fit(GIB) == 1792


def test_a_small_box_gets_the_least_useful_context() -> None:
    # Half of it is already spent by weights and buffers; nine tenths are not.
    assert fit(320 * MIB) == 256


def test_a_box_that_is_too_small_is_told_what_to_change() -> None:
    with pytest.raises(
        StartupError, match=r"256 tokens needs 267 MiB .* 200 MiB are available: "
    ) as e:
        fit(200 * MIB)
    assert "fewer --workers or --slots, a smaller model" in e.value.message
    assert "\n" not in e.value.message


def test_a_request_is_granted_up_to_nine_tenths_of_the_memory() -> None:
    assert fit(GIB, requested=4000) == 4000
    # 0.9 GiB less weights and buffers: 727,289,856 bytes at 160,000 a token.
    assert fit(GIB, requested=4545) == 4545
    with pytest.raises(StartupError, match="use --ctx-size 4545 or less, or fewer --workers"):
        fit(GIB, requested=4546)


def test_a_request_over_the_trained_length_is_refused() -> None:
    assert fit(requested=8192) == 8192
    with pytest.raises(StartupError, match="8193 is more than the model was trained for: use 8192"):
        fit(requested=8193)
    assert fit(train=0, requested=8193) == 8193


def test_unknown_memory_limits_nothing() -> None:
    assert fit(None) == 4096
    assert fit(None, requested=8000) == 8000


def test_a_model_without_a_kv_cache_needs_none() -> None:
    assert fit(400 * MIB, per_token=0) == 4096


@given(
    available=st.integers(1, 1 << 40),
    weights=st.integers(0, 1 << 38),
    per_token=st.integers(0, 1 << 20),
    workers=st.integers(1, 256),
    slots=st.integers(1, 64),
    train=st.integers(0, 1 << 20),
)
def test_a_default_always_fits_what_it_promises(
    available: int, weights: int, per_token: int, workers: int, slots: int, train: int
) -> None:
    try:
        tokens = fit(
            available,
            weights=weights,
            per_token=per_token,
            workers=workers,
            slots=slots,
            train=train,
        )
    except StartupError:
        return
    assert 1 <= tokens <= min(4096, train or 4096)
    need = need_bytes(
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        workers=workers,
        slots=slots,
        n_ctx=tokens,
    )
    assert need <= 0.9 * available


def test_cpu_workers_share_the_box_and_gpu_workers_have_a_card_each() -> None:
    cpu = [Placement(cpus=(n,), threads=1) for n in range(3)]
    assert budget(cpu, 5 * GIB) == Budget(5 * GIB, 3)
    of_two_nodes = [Placement(cpus=(i,), threads=1, node=i % 2) for i in range(3)]
    assert budget(of_two_nodes, 5 * GIB) == Budget(5 * GIB, 3, copies=2)
    gpu = [Placement(cpus=(n,), threads=1, gpu=n) for n in range(3)]
    rows = [
        GpuRow(memory_total=80.0 * GIB, memory_used=1.0 * GIB),
        GpuRow(memory_total=80.0 * GIB, memory_used=30.0 * GIB),
        GpuRow(),
    ]
    assert budget(gpu, 5 * GIB, rows) == Budget(50 * GIB, 1)
    assert budget(gpu[2:], 5 * GIB, rows) == Budget(None, 1)


def test_sizes_for_people() -> None:
    assert gib(WORKER_BYTES) == "64 MiB"
    assert gib(1.5 * GIB) == "1.5 GiB"
