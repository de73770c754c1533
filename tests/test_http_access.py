"""Who may come in: names, origins, keys; what is refused is counted and logged once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lbhost import setting_sources
from lbhost.config import Settings
from lbhost.gateway.http.hosts import Hosts, Origins
from lbhost.gateway.keyring import scope_of
from lbhost.setting_values import words
from running_gateway import CHAT, HELLO, RunningGateway, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]

KEY = "secret-key"


# --- names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("chat.localhost:8080", True),
        ("127.0.0.1:8080", True),
        ("192.168.0.7", True),
        ("[::1]:8080", True),
        ("box.example:8080", True),
        ("Box.Example.", True),
        ("other.example:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@localhost", False),
        ("localhost/evil", False),
        ("localhost:x", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_on_loopback_only_own_names_and_addresses_are_answered(host: str, allowed: bool) -> None:
    settings = Settings(host="box.example", allowed_hosts=("other.example", "x.example"))
    assert Hosts(settings, on_loopback=True).allow(host.encode()) is allowed


def test_where_others_come_in_names_are_checked_only_if_there_are_some() -> None:
    assert Hosts(Settings(), on_loopback=False).allow(b"any.example")
    assert Hosts(Settings(allowed_hosts="*"), on_loopback=True).allow(b"any.example")
    some = Hosts(Settings(allowed_hosts="a.example, B.example"), on_loopback=False)
    assert some.allow(b"b.example:80")
    assert not some.allow(b"any.example")


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("https://box.example", "box.example", True),
        ("http://box.example", "box.example:80", True),
        ("https://chat.example", "localhost:8080", True),
        ("https://chat.example:444", "localhost:8080", False),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://evil.example", "localhost:8080", False),
        ("http://evil.example", "", False),
        ("null", "localhost:8080", False),
        ("null", "", False),
        ("http://[", "localhost", False),
        ("http://localhost:99999", "localhost:99999", False),
    ],
)
def test_pages_of_this_host_or_of_a_configured_one_may(
    origin: str, host: str, allowed: bool
) -> None:
    origins = Origins(Settings(allowed_origins="https://chat.example/,https://b.example"))
    assert origins.allow(origin.encode(), host.encode()) is allowed
    assert Origins(Settings(allowed_origins=("*",))).allow(origin.encode(), host.encode())


async def refused(g: RunningGateway, status: int, code: str | None, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await g.client.post(CHAT, json=HELLO, headers=named)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"]
    assert not g.workers[0].submits


async def test_another_name_or_a_page_of_elsewhere_is_a_403() -> None:
    async with running_gateway() as g:
        await refused(g, 403, "host_not_allowed", host="evil.example")
        await refused(g, 403, "origin_not_allowed", origin="http://evil.example")
        same = {"origin": f"http://127.0.0.1:{g.port}"}
        assert (await g.client.post(CHAT, json=HELLO, headers=same)).status_code == 200


@pytest.mark.parametrize(
    "head",
    [b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: a\r\n"],
)
async def test_a_request_has_one_host(head: bytes) -> None:
    async with running_gateway(keep_alive_s=0.1) as g:
        assert (await g.raw(head + b"\r\n")).startswith(b"HTTP/1.1 400")
        assert (await g.raw(b"GET /livez HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_body_must_be_said_to_be_json() -> None:
    async with running_gateway() as g:
        response = await g.client.post(CHAT, content=json.dumps(HELLO).encode())
        assert response.status_code == 415
        assert response.json()["error"]["code"] == "unsupported_media_type"


def test_names_are_a_list_or_a_text_with_commas(tmp_path: Path) -> None:
    file = tmp_path / "lbhost.toml"
    file.write_text('allowed_hosts = ["a.example", "B.example:80"]\n')
    settings = setting_sources.load({"allowed_origins": "https://A.example/, *"}, {}, file)
    assert words(settings.allowed_hosts) == {"a.example", "b.example:80"}
    assert words(settings.allowed_origins) == {"https://a.example", "*"}


# --- keys and preflights ----------------------------------------------------------------


async def test_the_keys_scheme_may_be_in_lower_case_but_the_key_is_exact() -> None:
    async with running_gateway(api_key=KEY) as g:
        for wrong in ("Bearer SECRET-KEY", "Basic secret-key", "bearer", KEY, "Bearer"):
            await refused(g, 401, "invalid_api_key", authorization=wrong)
        twice = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {KEY}")]
        assert (await g.client.post(CHAT, json=HELLO, headers=twice)).status_code == 401
        for right in (f"bearer {KEY}", f"BEARER {KEY}", f"Bearer   {KEY}"):
            headers = {"authorization": right}
            assert (await g.client.post(CHAT, json=HELLO, headers=headers)).status_code == 200


async def test_a_preflight_needs_no_key_and_its_page_can_read_the_answers() -> None:
    page = "https://chat.example"
    asked = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    async with running_gateway(api_key=KEY, allowed_origins=page) as g:
        response = await g.client.options(CHAT, headers=asked)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == page
        assert "x-stainless-lang" in response.headers["access-control-allow-headers"]
        assert "POST" in response.headers["access-control-allow-methods"]
        assert response.headers["vary"] == "Origin"
        await refused(g, 401, "invalid_api_key", origin=page)
        headers = {"origin": page, "authorization": f"Bearer {KEY}"}
        answer = await g.client.post(CHAT, json=HELLO, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        elsewhere = await g.client.options(CHAT, headers={**asked, "origin": "http://evil.example"})
        assert elsewhere.status_code == 403
        assert "access-control-allow-origin" not in elsewhere.headers
        assert (await g.client.options(CHAT)).status_code == 401


PAGE = "https://chat.example"
COMMON = f"origin: {PAGE}\r\nauthorization: Bearer {KEY}\r\n".encode()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nhost: evil.example\r\n" + COMMON + b"\r\n", 403),
        (b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n" + COMMON + b"\r\n", 404),
        (b"POST /livez HTTP/1.1\r\nhost: localhost\r\n" + COMMON + b"\r\n", 405),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
            b"content-type: application/json\r\n" + COMMON + b"\r\n12",
            408,
        ),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000000\r\n" + COMMON + b"\r\n",
            413,
        ),
        (
            b"GET / HTTP/1.1\r\nhost: localhost\r\n" + COMMON + b"x: " + b"a" * 20_000,
            431,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_an_allowed_page_can_read_every_refusal(request_bytes: bytes, status: int) -> None:
    async with running_gateway(
        api_key=KEY, allowed_origins=PAGE, body_timeout_s=0.2, keep_alive_s=0.1
    ) as g:
        answer = await g.raw(request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert answer.count(f"access-control-allow-origin: {PAGE}\r\n".encode()) == 1
        elsewhere = await g.raw(request_bytes.replace(b"chat.example", b"evil.example"))
        assert b"access-control" not in elsewhere


async def test_a_key_may_come_as_x_api_key() -> None:
    async with running_gateway(api_key=KEY) as g:
        right = {"x-api-key": KEY}
        assert (await g.client.post(CHAT, json=HELLO, headers=right)).status_code == 200
        both = {"x-api-key": KEY, "authorization": "Bearer none"}
        assert (await g.client.post(CHAT, json=HELLO, headers=both)).status_code == 200
        wrong = await g.client.post(CHAT, json=HELLO, headers={"x-api-key": "wrong-key"})
        assert wrong.status_code == 401
        twice = [("x-api-key", "wrong-key"), ("x-api-key", KEY)]
        assert (await g.client.post(CHAT, json=HELLO, headers=twice)).status_code == 401
        assert (await g.client.get("/v1/health")).status_code == 200
        for page in ("/props", "/slots", "/metrics"):
            assert (await g.client.get(page)).status_code == 401


# --- what is refused is told --------------------------------------------------------------


REFUSALS: list[tuple[bytes, int, str]] = [
    (b"rubbish\r\n\r\n", 400, "invalid_request"),
    (b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n", 404, "not_found"),
    (b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", 401, "invalid_api_key"),
    (b"GET /livez HTTP/1.1\r\nhost: evil\r\n\r\n", 403, "host_not_allowed"),
    (b"POST /livez HTTP/1.1\r\nhost: localhost\r\n\r\n", 405, "method_not_allowed"),
    (b"GET /livez HTTP/1.1\r\nhost", 408, "request_timeout"),
    (b"POST / HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n", 413, "payload_too_large"),
    (b"POST /v1/completions HTTP/1.1\r\nhost: a.localhost\r\n\r\n", 415, "unsupported_media_type"),
    (b"GET /" + b"a" * 20_000, 431, "headers_too_large"),
]


@pytest.mark.parametrize(("request_bytes", "status", "reason"), REFUSALS, ids=lambda v: str(v)[:24])
async def test_every_refusal_is_counted_and_logged_once(
    request_bytes: bytes, status: int, reason: str
) -> None:
    settings: dict[str, Any] = {"api_key": KEY} if status == 401 else {}
    if status == 408:  # on a slow box other heads would be late, too
        settings["header_timeout_s"] = 1.0
    async with running_gateway(keep_alive_s=0.1, **settings) as g:
        with capture_logs() as lines:
            answer = await g.raw(request_bytes)
            assert answer.startswith(b"HTTP/1.1 %d" % status)
            await until(lambda: [x for x in lines if x["event"] == "request"], "it is logged")
        (line,) = [x for x in lines if x["event"] == "request"]
        assert (line["status"], line["reason"], line["outcome"]) == (status, reason, "invalid")
        assert f"x-request-id: {line['id']}".encode() in answer
        headers = {"authorization": f"Bearer {KEY}"}
        text = (await g.client.get("/metrics", headers=headers)).text
        wanted = rf'lbhost_error_answers_total{{reason="{reason}",status="{status}"}} 1\.0'
        assert re.search(wanted, text)
        assert 'lbhost_requests_total{outcome="invalid"} 1.0' in text


async def test_probes_of_a_server_that_is_not_ready_are_no_refusals() -> None:
    async with running_gateway(workers=0) as g:
        with capture_logs() as lines:
            assert (await g.client.get("/readyz")).status_code == 503
            assert (await g.client.get("/livez")).status_code == 200
            text = (await g.client.get("/metrics")).text
        assert not [x for x in lines if x["event"] == "request"]
        assert "lbhost_error_answers_total{" not in text


@pytest.mark.parametrize(
    ("settings", "scope"),
    [
        ({}, 0),
        ({"api_key": KEY}, scope_of(KEY.encode())),
        ({"api_key": KEY, "share_prefixes": True}, 0),
    ],
)
async def test_a_keys_requests_share_what_was_computed_with_its_own_alone(
    settings: dict[str, Any], scope: int
) -> None:
    async with running_gateway(**settings) as running:
        for header in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            answer = await running.client.post(CHAT, json={**HELLO, "n": 2}, headers=header)
            assert answer.status_code == 200
        assert [submit.scope for submit in running.workers[0].submits] == [scope] * 4


def test_a_scope_tells_keys_apart_and_does_not_tell_them() -> None:
    scopes = {scope_of(key) for key in (b"one-key", b"one-kez", b"another")}
    assert len(scopes) == 3
    assert 0 not in scopes
