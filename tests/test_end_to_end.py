"""The real server with the real model: real processes, real signals, real requests.

Needs the starter extra and two CPUs.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIError, AuthenticationError, NotFoundError, OpenAI, RateLimitError

from lbhost.status import Status
from serving import (
    PATIENCE_S,
    Server,
    alive,
    cpu_affinity,
    finished,
    spinning,
    text_of,
    wait_for,
)

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tests that leave it as they found it."""
    with Server(tmp_path_factory.mktemp("shared") / "run", *SMALL) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server for a test that breaks things. Its streams may end however slow the box is."""
    with Server(tmp_path / "run", *SMALL, "--shutdown-grace", "600") as server:
        yield server


def both_ready(server: Server) -> None:
    server.wait(
        lambda status: [w.state for w in status.workers] == ["ready", "ready"],
        "both workers are ready",
    )


# --- the main job -----------------------------------------------------------------------


def test_two_workers_serve_each_from_its_own_core(shared: Server) -> None:
    workers = shared.status().workers
    assert [w.id for w in workers] == [0, 1]
    assert len({tuple(w.cores) for w in workers}) == 2
    for worker in workers:
        assert worker.pid is not None
        assert cpu_affinity(worker.pid) == set(worker.cores)
    answers = [shared.later(shared.complete, f"Number {i} is", max_tokens=24) for i in range(8)]
    served = Counter(answer.result().headers["x-lbhost-worker"] for answer in answers)
    assert set(served) == {"0", "1"}


def test_the_answer_is_the_same_from_every_worker_streamed_or_not(shared: Server) -> None:
    prompt = "The capital of France is"
    whole = shared.complete(prompt, max_tokens=20)
    assert whole.status_code == 200
    text = whole.json()["choices"][0]["text"]
    assert "Paris" in text
    for _ in range(4):
        events = shared.stream(prompt, max_tokens=20)
        assert finished(events)
        assert text_of(events) == text


def test_the_official_client_chats(shared: Server) -> None:
    with OpenAI(base_url=f"{shared.endpoint}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say hello."}],
            temperature=0,
            max_tokens=12,
        )
        said = answer.choices[0].message.content
        assert said
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 12
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say hello."}],
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
        assert chunks[-1].usage is not None
        with pytest.raises(NotFoundError):
            client.completions.create(model="no-such-model", prompt="hi")


def test_a_client_that_leaves_frees_its_slot(shared: Server) -> None:
    host, port = shared.endpoint.removeprefix("http://").split(":")
    body = b'{"prompt": "Tell me a long story", "max_tokens": 900, "ignore_eos": true}'
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        shared.wait(lambda s: sum(w.slots_busy for w in s.workers) > 0, "it runs")
    shared.wait(
        lambda s: s.traffic.in_flight == 0 and all(w.slots_busy == 0 for w in s.workers),
        "the slot is free again",
    )


def test_metrics_and_health_say_what_runs(shared: Server) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert shared.http.get(path).status_code == 200
    text = shared.http.get("/metrics").text
    assert 'lbhost_worker_state{state="ready",worker="0"} 1.0' in text
    assert "lbhost_time_to_first_token_seconds_bucket" in text


def test_a_prompt_longer_than_the_context_is_refused(shared: Server) -> None:
    answer = shared.complete("word " * 3000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


# --- what it survives -------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_no_plain_request_fails(own: Server) -> None:
    answers = [
        own.later(own.complete, f"Story {i}:", max_tokens=120, ignore_eos=True) for i in range(6)
    ]
    own.wait(lambda s: s.workers[0].slots_busy > 0, "worker 0 works")
    victim = own.worker(0)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    own.wait(
        lambda s: s.workers[0].state == "ready" and s.workers[0].epoch > victim.epoch,
        "a new worker 0",
    )
    for answer in answers:
        assert answer.result().status_code == 200
        assert answer.result().json()["usage"]["completion_tokens"] == 120


def test_a_stopped_worker_is_taken_for_hung_and_replaced(own: Server) -> None:
    answers = [
        own.later(own.complete, f"Story {i}:", max_tokens=120, ignore_eos=True) for i in range(6)
    ]
    own.wait(lambda s: s.workers[1].slots_busy > 0, "worker 1 works")
    victim = own.worker(1)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGSTOP)
    status = own.wait(
        lambda s: s.workers[1].state == "ready" and s.workers[1].epoch > victim.epoch,
        "a new worker 1",
    )
    assert status.workers[1].health_kills == 1
    for answer in answers:
        assert answer.result().status_code == 200


def test_a_killed_gateway_comes_back_on_the_same_port(own: Server) -> None:
    before = own.status()
    assert before.gateway.pid is not None
    os.kill(before.gateway.pid, signal.SIGKILL)
    own.wait(
        lambda s: s.gateway.state == "ready" and s.gateway.pid != before.gateway.pid,
        "a new gateway",
    )
    wait_for(lambda: own.http.get("/readyz").status_code == 200, "it is ready for work")
    assert own.complete().status_code == 200
    assert [w.pid for w in own.status().workers] == [w.pid for w in before.workers]


def test_a_killed_fork_server_leaves_the_workers_serving_and_comes_back(own: Server) -> None:
    before = own.status()
    assert before.template is not None
    assert before.template.pid is not None
    os.kill(before.template.pid, signal.SIGKILL)
    assert own.complete().status_code == 200
    assert [w.pid for w in own.status().workers] == [w.pid for w in before.workers]
    worker = before.workers[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    own.wait(
        lambda s: s.workers[0].state == "ready" and s.workers[0].pid != worker.pid,
        "the new fork server forks a new worker",
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGQUIT])
def test_nothing_outlives_the_supervisor(own: Server, how: signal.Signals) -> None:
    pids = own.pids()
    assert len(pids) == 5
    stopped = own.worker(0).pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    own.process.send_signal(how)
    own.process.wait(PATIENCE_S)
    wait_for(lambda: not any(alive(pid) for pid in pids), "every process is gone")


def test_drain_resume_and_restarts_under_streaming_load_fail_no_request(own: Server) -> None:
    stop = False

    def load(client: int) -> list[bool]:
        results = []
        while not stop:
            events = own.stream(f"Client {client} says", max_tokens=24, ignore_eos=True)
            results.append(finished(events))
        return results

    clients = [own.later(load, client) for client in range(6)]
    try:
        own.wait(lambda s: s.traffic.tokens_s > 0, "load runs")
        epochs = [w.epoch for w in own.status().workers]
        assert own.cli("drain", "0").returncode == 0
        assert own.worker(0).state == "stopped"
        assert own.cli("resume", "0").returncode == 0
        assert own.worker(0).state == "ready"
        assert own.cli("restart", "1").returncode == 0
        assert own.worker(1).state == "ready"
        assert own.cli("restart", "all").returncode == 0
        both_ready(own)
        after = [w.epoch for w in own.status().workers]
        assert all(new >= old + 2 for old, new in zip(epochs, after, strict=True))
        scaled = own.admin.post("/scale", json={"workers": 1})
        assert scaled.status_code == 200
        assert [w.id for w in own.status().workers] == [0]
        assert own.admin.post("/scale", json={"workers": 2}).status_code == 200
        both_ready(own)
    finally:
        stop = True
    results = [ok for client in clients for ok in client.result()]
    assert len(results) > 6
    assert all(results)


# --- the hardware decides ---------------------------------------------------------------


def test_a_busy_core_loses_its_traffic(own: Server) -> None:
    def only_core_0_is_taken(status: Status) -> bool:
        # The machine that runs this test may have neighbours of its own on the other core.
        first, second = status.workers
        return (first.share or 0) < 0.6 * (second.share or 0)

    served: Counter[str] = Counter()
    with spinning(own.worker(0).cores[0]):
        while served.total() < 10:
            own.wait(only_core_0_is_taken, "the sensors see the other program, on core 0 alone")
            answer = own.complete(f"Number {served.total()} is", max_tokens=4)
            if only_core_0_is_taken(own.status()):
                served[answer.headers["x-lbhost-worker"]] += 1
    assert served["1"] >= 9


def write_hot_box(sysfs: Path, temps_c: dict[int, float]) -> None:
    """A sysfs with coretemp sensors for two cores of one package."""
    for cpu in temps_c:
        topology = sysfs / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "core_id").write_text(f"{cpu}\n")
        (topology / "physical_package_id").write_text("0\n")
        (topology / "thread_siblings_list").write_text(f"{cpu}\n")
    (sysfs / "devices/system/cpu/online").write_text("0-1\n")
    hwmon = sysfs / "class/hwmon/hwmon0"
    hwmon.mkdir(parents=True, exist_ok=True)
    (hwmon / "name").write_text("coretemp\n")
    for cpu, temp_c in temps_c.items():
        (hwmon / f"temp{cpu + 2}_label").write_text(f"Core {cpu}\n")
        (hwmon / f"temp{cpu + 2}_input").write_text(f"{round(temp_c * 1000)}\n")


def test_a_hot_core_loses_its_traffic_and_gets_it_back(tmp_path: Path) -> None:
    sysfs = tmp_path / "sys"
    write_hot_box(sysfs, {0: 50, 1: 50})
    with Server(tmp_path / "run", *SMALL, environ={"LBHOST_SYSFS_ROOT": str(sysfs)}) as server:
        assert server.worker(0).temp_c == 50
        write_hot_box(sysfs, {0: 99, 1: 50})
        server.wait(lambda s: s.workers[0].state == "resting", "worker 0 rests")
        served = {server.complete(max_tokens=4).headers["x-lbhost-worker"] for _ in range(6)}
        assert served == {"1"}
        write_hot_box(sysfs, {0: 90, 1: 50})
        server.wait(lambda s: (s.workers[0].temp_c or 0) == 90, "it cools")
        assert server.worker(0).state == "resting"
        write_hot_box(sysfs, {0: 60, 1: 50})
        both_ready(server)


def test_a_lone_request_computes_on_both_cores(tmp_path: Path) -> None:
    # Use of the CPUs stays unknown, so that whatever else runs here does not keep cores back.
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "stat").write_text("cpu0 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1\n")
    quiet = {"LBHOST_PROCFS_ROOT": str(proc)}
    ask = {"max_tokens": 200, "ignore_eos": True, "temperature": 0}
    with Server(tmp_path / "run", *SMALL, environ=quiet) as server:
        wide = server.later(server.complete, "A story:", **ask)
        status = server.wait(lambda s: any(w.lent for w in s.workers), "one computes on both cores")
        one = next(worker for worker in status.workers if worker.lent)
        two = next(worker for worker in status.workers if worker.id != one.id)
        assert one.lent == two.cores
        assert {core.cpu: core.lent_to for core in status.cores}[two.cores[0]] == one.id
        both = [server.later(server.complete, f"{n} story:", **ask) for n in "AB"]
        for answer in (wide, *both):
            assert answer.result().json()["usage"]["completion_tokens"] == 200
        server.wait(lambda s: not any(w.lent for w in s.workers), "each has its own core again")
        assert [w.health_kills for w in server.status().workers] == [0, 0]
        steps = re.findall(
            r"lbhost_worker_wide_steps_total\{.*\} (\S+)", server.http.get("/metrics").text
        )
        assert sum(map(float, steps)) > 0


# --- the end ----------------------------------------------------------------------------


def test_sigterm_lets_running_streams_finish(own: Server) -> None:
    stream = own.later(own.stream, "A story:", max_tokens=200, ignore_eos=True)
    own.wait(lambda s: s.traffic.in_flight > 0, "it runs")
    pids = own.pids()
    own.process.send_signal(signal.SIGTERM)
    assert finished(stream.result())
    assert own.process.wait(PATIENCE_S) == 0
    assert not any(alive(pid) for pid in pids)
    assert not (own.runtime_dir / "admin.sock").exists()


def test_sigterm_to_every_process_cuts_no_stream(own: Server) -> None:
    streams = [own.later(own.stream, "A story:", max_tokens=200, ignore_eos=True) for _ in range(4)]
    own.wait(lambda s: s.traffic.in_flight == 4, "all run")
    pids = own.pids()
    for _ in range(2):  # as systemd and scripts do: to the process, then to its group
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    assert all(finished(stream.result()) for stream in streams)
    assert own.process.wait(PATIENCE_S) == 0
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("kind", ["reader gone", "reader asleep", "disk full"])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, kind: str) -> None:
    if kind == "disk full":
        reading, writing = -1, os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
    with Server(tmp_path / "run", *SMALL, output=writing) as server:
        os.close(writing)
        if kind == "reader gone":
            os.close(reading)
        elif kind == "reader asleep":
            for _ in range(400):  # a request is a line of the log: more than a pipe holds
                server.complete(max_tokens=1)
        before = server.worker(0)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        server.wait(
            lambda s: s.workers[0].epoch == before.epoch + 1 and s.workers[0].state == "ready",
            "the worker is replaced",
        )
        assert server.complete().status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
    if kind == "reader asleep":
        os.close(reading)


def test_the_doctor_knows_a_running_lbhost(own: Server) -> None:
    found = own.cli("doctor").stdout
    assert f"lbhost is running here (pid {own.process.pid})" in found


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_is_told(tmp_path: Path, kind: str) -> None:
    name = f"lbhost-test-{os.getpid()}"
    address = str(tmp_path / "notify") if kind == "path" else f"\0{name}"
    told = address if kind == "path" else f"@{name}"
    environ = {"NOTIFY_SOCKET": told, "WATCHDOG_USEC": "30000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        heard = set[str]()

        def until(line: str) -> None:
            while line not in heard:
                heard.update(manager.recv(4096).decode().splitlines())

        with Server(tmp_path / "run", *SMALL, environ=environ) as server:
            until("READY=1")
            until("WATCHDOG=1")
            for pid in server.pids() - {server.process.pid}:
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
            server.process.send_signal(signal.SIGTERM)
            until("STOPPING=1")
            assert server.process.wait(PATIENCE_S) == 0


def test_the_api_key_is_the_gateways_alone(tmp_path: Path) -> None:
    secret = "0123456789-secret"
    with Server(tmp_path / "run", *SMALL, environ={"LBHOST_API_KEY": secret}) as server:
        assert server.complete().status_code == 401
        for pid in server.pids() - {server.process.pid}:
            assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_key_that_was_made_while_the_server_runs_comes_in_and_has_its_limits(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.toml"
    file.touch(mode=0o600)
    environ = {"LBHOST_KEYS_FILE": str(file)}
    with Server(tmp_path / "run", *SMALL, "--host", "0.0.0.0", environ=environ) as server:
        made = subprocess.run(
            [sys.executable, "-m", "lbhost", "keys", "new", "app"],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=True,
        )
        key = made.stdout.strip()
        assert key not in file.read_text()
        file.write_text(file.read_text().replace("# requests_per_minute = 60", _TWO_A_MINUTE))
        base = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        with OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0) as client:

            def left() -> str:
                answer = client.completions.with_raw_response.create(
                    model=server.status().model, prompt="Once", max_tokens=4
                )
                return str(answer.headers["x-ratelimit-remaining-requests"])

            def known() -> bool:
                try:
                    answer = client.models.with_raw_response.list()
                except AuthenticationError:
                    return False
                return "x-ratelimit-limit-requests" in answer.headers

            wait_for(known, "the key and its limit are known")
            assert [left(), left()] == ["1", "0"]
            with pytest.raises(RateLimitError) as refused:
                left()
            assert refused.value.code == "rate_limit_exceeded"
        assert '"key":"app"' in server.log.read_text().replace(": ", ":")


_TWO_A_MINUTE = "requests_per_minute = 2"


def test_streams_cut_off_after_the_grace_get_an_error_event(tmp_path: Path) -> None:
    with Server(tmp_path / "run", *SMALL, "--shutdown-grace", "0.2") as server:
        with OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model=server.status().model,
                prompt="A story:",
                max_tokens=900,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(APIError):
                for _ in stream:
                    pass
        assert server.process.wait(PATIENCE_S) == 0
