"""A fake admin server whose numbers move, to look at the TUI without a model:

`python tests/moving_admin.py RUNTIME_DIR [--workers N] [--gpus]`, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import time
from pathlib import Path

import msgspec

from fake_admin import GB, FakeAdmin, live_request, status
from lbhost.status import CoreStatus, GpuStatus, RequestStatus, Status


def busy(picture: Status, now: float) -> Status:
    """The picture with numbers as under a load that comes and goes."""
    workers = []
    for w in picture.workers:
        if w.state != "ready":
            workers.append(w)
            continue
        wave = 0.5 + 0.5 * math.sin(now / 17 + w.id * 1.7)
        slots = round(wave * w.slots)
        workers.append(
            msgspec.structs.replace(
                w,
                slots_busy=slots,
                in_flight=slots,
                prefill_pending=int(900 * wave * wave),
                tokens_s=max(0.0, round(120 * wave + 6 * math.sin(now * 3 + w.id), 1)),
                tokens_out=w.tokens_out + int(60 * wave),
                ttft_s=0.05 + 0.4 * wave,
                inter_token_s=0.02 + 0.05 * wave,
                prefill_tok_s=410.0 + 20 * wave,
                prompt_tokens_s=round(400 * wave * wave),
                heat=None if w.id % 8 == 7 else 1 - 0.4 * wave,
                kv_used=int(w.kv_total * wave * 0.8),
                idle=1 - 0.95 * wave,
                others=0.04 + (0.5 if w.id == 1 and math.sin(now / 29) > 0.3 else 0.02 * wave),
                temp_c=None if w.id % 8 == 7 else 46 + 38 * wave,
                uptime_s=(w.uptime_s or 0) + 0.5,
            )
        )
    tokens = sum(w.tokens_s for w in workers)
    flying = sum(w.in_flight for w in workers)
    traffic = msgspec.structs.replace(
        picture.traffic,
        in_flight=flying,
        requests_s=tokens / 64,
        tokens_s=tokens,
        prompt_tokens_s=sum(w.prompt_tokens_s for w in workers),
        oldest_wait_s=0.3 + 4 * wait if (wait := math.sin(now / 23)) > 0.125 else None,
        error_rate=0.0,
        queue_depth=max(0, int(8 * math.sin(now / 23))),
        ttft_p50_s=0.18 + 0.05 * math.sin(now / 11),
        ttft_p95_s=0.42 + 0.1 * math.sin(now / 13),
        ttft_p95_queue_s=0.2 + 0.1 * math.sin(now / 13),
        ttft_p95_prefill_s=0.17,
        ttft_p95_step_s=0.05,
        next_start_s=2.4 if math.sin(now / 23) > 0.125 else None,
    )
    cores = [
        CoreStatus(
            cpu=w.id,
            idle=w.idle,
            others=w.others,
            worker=w.id,
            lent_to=(w.id + 1) % len(workers) if w.slots_busy == 0 else None,
        )
        for w in workers
        if w.gpu is None
    ]
    return msgspec.structs.replace(
        picture, workers=workers, traffic=traffic, cores=cores, uptime_s=picture.uptime_s + 0.5
    )


def busy_requests(picture: Status, now: float) -> list[RequestStatus]:
    """Live requests as such a server has them: some run, some wait."""
    found = []
    for w in picture.workers:
        for slot in range(w.slots_busy):
            age = (now * 0.7 + slot * 3.1 + w.id * 1.3) % 12
            prompt = 90 + 170 * slot + 40 * w.id
            done = min(prompt, int(age * 160))
            out = min(256, max(0, int((age - prompt / 160) * 30)))
            found.append(
                live_request(
                    f"req_{w.id:02d}{slot}{int(now / 12):06d}c0ffee{slot}{w.id:02d}",
                    key=("app", "", "batch", "evals")[slot],
                    tier=("default", "default", "flex", "priority")[slot],
                    state="prefill" if done < prompt else "decode",
                    workers=[w.id],
                    prompt_tokens=prompt,
                    prompt_done=done,
                    tokens_out=out,
                    tokens_s=30.0 + slot if out > 1 else None,
                    age_s=age,
                    ends_in_s=max(0.2, 12 - age),
                )
            )
    found += [
        live_request(
            f"req_q{place}deadbeef{place}",
            key="batch",
            state="queued",
            workers=[],
            prompt_tokens=300 + 211 * place,
            prompt_done=0,
            tokens_out=0,
            tokens_s=None,
            age_s=4.2 - 0.4 * place,
            starts_in_s=1.2 + 0.9 * place,
            ends_in_s=8.4 + 0.9 * place,
        )
        for place in range(picture.traffic.queue_depth)
    ]
    return sorted(found, key=lambda request: -request.age_s)


async def _show(runtime_dir: Path, workers: int, still: bool, gpus: bool) -> None:
    picture = status(workers)
    if gpus:
        cards = [
            GpuStatus(
                index=number,
                name="NVIDIA H100",
                uuid=f"GPU-{number}",
                utilisation=0.63,
                memory_used=9.1 * GB,
                memory_total=80.0 * GB,
                temp_c=61.0,
                clock_limit="power",
            )
            for number in range(workers)
        ]
        on_cards = [
            msgspec.structs.replace(w, gpu=w.id, cores=[], idle=None, others=None)
            for w in picture.workers
        ]
        picture = msgspec.structs.replace(picture, gpus=cards, workers=on_cards)
    async with FakeAdmin(runtime_dir / "admin.sock", picture) as fake:
        await fake.say("server starting, pid 4100", kind="server")
        for number in range(workers):
            await fake.say(f"ready after 31 ms on core {number}", worker=number)
        while True:
            if not still:
                fake.status = busy(fake.status, time.monotonic())
                fake.requests = busy_requests(fake.status, time.monotonic())
            await asyncio.sleep(0.5)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime_dir", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--still", action="store_true", help="numbers do not move")
    parser.add_argument("--gpus", action="store_true")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_show(options.runtime_dir, options.workers, options.still, options.gpus))


if __name__ == "__main__":
    main()
