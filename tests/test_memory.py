from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.board import GpuRow
from lbhost.errors import StartupError
from lbhost.placement.memory import (
    WORKER_BYTES,
    Budget,
    Held,
    budget,
    fit_context,
    fit_contexts,
    gib,
    need_bytes,
)
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


def held(name: str = "m", **values: int | None) -> Held:
    usual: dict[str, Any] = {
        "weights_bytes": 100 * MIB,
        "kv_bytes_per_token": 20_000,
        "workers": 2,
        "slots": 4,
        "n_ctx_train": 8192,
        "requested": None,
    }
    return Held(name=name, **{**usual, **values})


def test_several_models_get_the_same_context_as_far_as_they_were_trained_for_it() -> None:
    models = [held(), held(n_ctx_train=512), held(requested=300)]
    assert fit_contexts(64 * GIB, models) == [4096, 512, 300]
    assert fit_contexts(None, models) == [4096, 512, 300]


@given(
    st.integers(500 * MIB, 64 * GIB),
    st.lists(
        st.builds(
            held,
            kv_bytes_per_token=st.integers(0, 200_000),
            workers=st.integers(1, 16),
            n_ctx_train=st.sampled_from([0, 128, 2048, 131072]),
            requested=st.none() | st.integers(64, 128),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_several_models_never_get_more_memory_than_there_is(
    available: int, models: list[Held]
) -> None:
    try:
        contexts = fit_contexts(available, models)
    except StartupError:
        least = sum(model.bytes(256) for model in models)
        assert least > available * 0.9
        return
    need = sum(
        need_bytes(
            weights_bytes=model.weights_bytes,
            kv_bytes_per_token=model.kv_bytes_per_token,
            workers=model.workers,
            slots=model.slots,
            n_ctx=n_ctx,
        )
        for model, n_ctx in zip(models, contexts, strict=True)
    )
    assert need <= available * 0.9
    unasked = [
        n_ctx
        for n_ctx, model in zip(contexts, models, strict=True)
        if model.requested is None and model.kv_bytes_per_token
    ]
    assert need <= available * 0.5 or all(n <= 256 for n in unasked)


@given(
    st.integers(200 * MIB, 32 * GIB), st.integers(0, 200_000), st.sampled_from([0, 128, 2000, 8192])
)
def test_one_model_of_several_gets_what_it_would_alone(
    available: int, per_token: int, train: int
) -> None:
    try:
        alone = fit(available, per_token=per_token, train=train)
    except StartupError:
        with pytest.raises(StartupError):
            fit_contexts(available, [held(kv_bytes_per_token=per_token, n_ctx_train=train)])
        return
    model = held(kv_bytes_per_token=per_token, n_ctx_train=train)
    assert fit_contexts(available, [model]) == [alone]
