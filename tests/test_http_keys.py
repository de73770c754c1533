"""Named keys over HTTP: limits, tiers, models, and a file that changes under a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from fake_worker import Script
from lbhost import keys, order
from lbhost.errors import NotReadyError, RateLimitError
from lbhost.gateway.recorder import OUTCOMES, outcome
from lbhost.purpose import GENERATES
from running_gateway import CHAT, HELLO, MODEL, RunningGateway, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


def write(path: Path, **tables: dict[str, Any]) -> None:
    """A keys file in which NAME's key is "sk-NAME"."""
    lines: list[str] = []
    for name, fields in tables.items():
        lines += ["[[keys]]", f'name = "{name}"', f'hash = "{keys.hash_of("sk-" + name)}"']
        lines += [f"{field} = {value!r}".replace("'", '"') for field, value in fields.items()]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)


@asynccontextmanager
async def gateway(path: Path, **settings: Any) -> AsyncIterator[RunningGateway]:
    async with running_gateway(keys_file=str(path), **settings) as g:
        yield g


async def chat(g: RunningGateway, name: str, **fields: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer sk-{name}"}
    return await g.client.post(CHAT, json={**HELLO, **fields}, headers=headers)


async def test_named_keys_and_the_one_without_a_name_come_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={}, bob={})
    async with gateway(path, api_key="sk-unnamed") as g:
        with capture_logs() as lines:
            for name in ("alice", "bob", "unnamed"):
                answer = await chat(g, name)
                assert answer.status_code == 200
                assert not [h for h in answer.headers if h.startswith("x-ratelimit")]
        told = [line.get("key") for line in lines if line["event"] == "request"]
        assert told == ["alice", "bob", None]
        assert not [line for line in lines if "sk-" in str(line)]
        refused = await chat(g, "mallory")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        scopes = [submit.scope for submit in g.workers[0].submits]
        assert len(set(scopes)) == 3
        assert 0 not in scopes
        headers = {"authorization": "Bearer sk-unnamed"}
        text = (await g.client.get("/metrics", headers=headers)).text
        assert 'lbhost_key_requests_total{key="alice"} 1.0' in text
        assert 'lbhost_key_tokens_total{key="bob",kind="completion"}' in text
        assert 'lbhost_key_running{key="bob"} 0.0' in text
        assert "sk-" not in text


async def test_a_key_sees_of_the_metrics_what_it_may_use_itself(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(
        path,
        alice={"models": ["second"]},
        bob={},
        carol={"models": ["nothing"]},
        prometheus={"metrics": "all", "models": ["nothing"]},
    )
    async with gateway(path, more={"second": GENERATES}) as g:
        await g.add(1, model=1)
        assert (await chat(g, "alice", model="second")).status_code == 200
        assert (await chat(g, "bob")).status_code == 200

        async def labels(name: str) -> dict[str, set[str]]:
            headers = {"x-api-key": f"sk-{name}"}
            found: dict[str, set[str]] = {}
            text = (await g.client.get("/metrics", headers=headers)).text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        found.setdefault(label, set()).add(value)
            return found

        both, everyone = {MODEL, "second"}, {"alice", "bob", "carol", "prometheus"}
        for name, models, whose in (
            ("alice", {"second"}, {"alice"}),
            ("bob", both, {"bob"}),
            ("carol", set[str](), {"carol"}),
            ("prometheus", both, everyone),
            ("alice", {"second"}, {"alice"}),
        ):
            seen = await labels(name)
            assert seen["key"] == whose
            assert seen.get("model", set()) == seen.get("model_name", set()) == models
            assert "sk-" not in str(seen)


async def test_a_key_over_its_rate_is_a_429_in_the_shape_of_its_dialect(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={"requests_per_minute": 1}, bob={})
    async with gateway(path) as g:
        first = await chat(g, "alice")
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        second = await chat(g, "alice")
        assert second.status_code == 429
        assert second.json()["error"]["code"] == "rate_limit_exceeded"
        assert second.json()["error"]["type"] == "requests"
        assert 1 <= int(second.headers["retry-after"]) <= 60
        body = {"model": MODEL, "max_tokens": 9, "messages": HELLO["messages"]}
        third = await g.client.post("/v1/messages", json=body, headers={"x-api-key": "sk-alice"})
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert (await chat(g, "bob")).status_code == 200
        headers = {"x-api-key": "sk-alice"}
        pages = await g.client.get("/v1/models", headers=headers)
        assert pages.status_code == 200  # pages that only tell are free
        text = (await g.client.get("/metrics", headers=headers)).text
        assert 'lbhost_requests_total{outcome="rate_limited"} 2.0' in text
        assert 'lbhost_key_limited_total{key="alice"} 2.0' in text


async def test_tokens_are_settled_when_the_answer_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={"tokens_per_minute": 1000})
    async with gateway(path) as g:
        answer = await chat(g, "alice", max_tokens=500, stream=False)
        assert answer.status_code == 200
        usage = answer.json()["usage"]
        (account,) = g.gateway.keyring.named
        await until(lambda: account.running == 0, "the answer is settled")
        assert account.prompt_tokens == usage["prompt_tokens"]
        assert account.completion_tokens == usage["completion_tokens"]
        large = await chat(g, "alice", max_tokens=1500, ignore_eos=True)
        assert (large.status_code, large.json()["error"]["type"]) == (429, "tokens")
        assert large.headers["x-should-retry"] == "false"
        assert account.running == 0
        assert len(g.workers[0].submits) == 1


async def test_answers_at_once_are_limited_and_a_client_that_leaves_gives_them_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={"max_concurrent": 1})
    async with gateway(path, workers=0) as g:
        worker = await g.add(0, script=Script(prefill_s=1000.0))
        (account,) = g.gateway.keyring.named
        waiting = asyncio.create_task(chat(g, "alice"))
        await until(lambda: worker.submits, "the worker has it")
        assert account.running == 1
        refused = await chat(g, "alice")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: account.running == 0, "it is given back")
        two = await chat(g, "alice", n=2)
        assert (two.status_code, two.headers["x-should-retry"]) == (429, "false")


async def test_a_tier_or_model_that_the_key_may_not_use_is_a_403(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(
        path,
        alice={},
        bob={"service_tier": "priority"},
        carol={"models": ["another"]},
    )
    async with gateway(path) as g:
        refused = await chat(g, "alice", service_tier="priority")
        assert refused.status_code == 403
        assert refused.json()["error"]["param"] == "service_tier"
        assert (await chat(g, "alice", service_tier="flex")).json()["service_tier"] == "flex"
        assert (await chat(g, "bob", service_tier="auto")).json()["service_tier"] == "priority"
        assert "service_tier" not in (await chat(g, "bob")).json()
        ranks = [submit.rank for submit in g.workers[0].submits]
        assert ranks == [order.FLEX, order.PRIORITY, order.PRIORITY]
        refused = await chat(g, "carol")
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        headers = {"authorization": "Bearer sk-carol"}
        assert (await g.client.get("/v1/models", headers=headers)).json()["data"] == []
        assert (await g.client.get(f"/v1/models/{MODEL}", headers=headers)).status_code == 403
        body = {"model": MODEL, "max_tokens": 9, "messages": HELLO["messages"]}
        told = await g.client.post("/v1/messages", json=body, headers=headers)
        assert told.json()["error"]["type"] == "permission_error"
        assert told.json()["type"] == "error"


async def test_a_changed_file_counts_and_one_that_is_not_right_changes_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={"requests_per_minute": 2}, bob={})
    async with gateway(path) as g:
        assert (await chat(g, "alice")).status_code == 200
        write(path, alice={"requests_per_minute": 4}, carol={})
        await until(lambda: g.gateway.keyring.find(b"sk-carol"), "the new file is read")
        assert (await chat(g, "bob")).status_code == 401
        answer = await chat(g, "alice")
        assert answer.headers["x-ratelimit-limit-requests"] == "4"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"  # what was used stays used
        with capture_logs() as lines:
            path.write_text("rubbish")
            await until(lambda: lines, "the rubbish is noticed")
            path.unlink()
            await until(lambda: len(lines) > 1, "that it is gone is noticed")
        assert [line["log_level"] for line in lines] == ["error", "error"]
        assert (await chat(g, "carol")).status_code == 200


async def test_a_gateway_that_starts_with_a_bad_file_lets_nobody_in_until_it_is_right(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("rubbish")
    async with gateway(path) as g:
        assert (await chat(g, "alice")).status_code == 401
        assert (await g.client.get("/livez")).status_code == 200
        write(path, alice={})
        await until(lambda: g.gateway.keyring.named, "the file is read")
        assert (await chat(g, "alice")).status_code == 200


def test_a_refusal_for_a_limit_has_an_outcome_of_its_own() -> None:
    assert outcome(RateLimitError("x")) in OUTCOMES
    assert outcome(RateLimitError("x")) != outcome(NotReadyError("x"))


async def test_a_key_cannot_take_all_connections(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    write(path, alice={}, flood={})
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-api-key: sk-flood\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    )
    async with gateway(path, max_connections=8) as g:
        taken = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
            writer.write(head.encode())
            taken.append((reader, writer))
        await until(lambda: g.gateway.keyring.named[1].open == 6, "they hold three quarters")
        refused = await g.raw(head.encode())
        assert refused.startswith(b"HTTP/1.1 429")
        assert b'"queue_full"' in refused
        assert (await chat(g, "alice")).status_code == 200
        for _, writer in taken:
            writer.close()
        await until(lambda: g.gateway.keyring.named[1].open == 0, "they are gone")
        assert (await chat(g, "flood")).status_code == 200
