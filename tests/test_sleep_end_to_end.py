"""A real server whose model sleeps: requests wake it, whenever they come, and none fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import msgspec
import pytest

from lbhost.status import Event, Status
from serving import Server, finished, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("run")
    flags = ("--no-probe", "--idle-timeout", "0.5", "--max-workers", "2", "--ctx-size", "256")
    with Server(folder / "lbhost", *flags) as server:
        yield server


def sleeping(status: Status) -> bool:
    return status.models[0].state == "sleeping" and not status.workers


def test_a_burst_for_a_sleeping_model_is_answered(shared: Server) -> None:
    status = shared.wait(sleeping, "the model sleeps")
    assert status.state == "ready"
    assert status.template is not None, "its weights stay"
    assert shared.http.get("/readyz").status_code == 200
    assert "Sleeps until a request comes" in shared.cli("status").stdout
    streams = [shared.later(shared.stream, f"Story {i}:", max_tokens=8) for i in range(12)]
    assert all(finished(stream.result()) for stream in streams)
    again = shared.wait(lambda status: status.template, "the fork server is there")
    assert again.template is not None
    assert again.template.pid == status.template.pid


def test_requests_that_come_while_it_goes_to_sleep_are_answered(shared: Server) -> None:
    """Each time at the very moment at which the decision is told, before the workers have gone."""
    rounds, streams = 0, []
    with shared.admin.stream("GET", "/events", params={"backlog": 0}) as events:
        streams += [shared.later(shared.stream, "Once", max_tokens=2)]
        for line in events.iter_lines():
            if not line.startswith("data: "):
                continue
            event = msgspec.json.decode(line[6:], type=Event)
            if event.kind == "autoscale" and event.message.startswith("sleeps"):
                rounds += 1
                streams += [
                    shared.later(shared.stream, f"{rounds} {i}", max_tokens=2) for i in range(3)
                ]
            if rounds == 4:
                break
    assert all(finished(stream.result()) for stream in streams)


def test_a_gateway_that_dies_knows_again_who_sleeps(shared: Server) -> None:
    status = shared.wait(sleeping, "the model sleeps")
    assert status.gateway.pid is not None
    os.kill(status.gateway.pid, signal.SIGKILL)
    shared.wait(
        lambda now: now.gateway.state == "ready" and now.gateway.pid != status.gateway.pid,
        "another gateway",
    )
    wait_for(lambda: shared.http.get("/readyz").status_code == 200, "it is ready")
    assert finished(shared.stream(max_tokens=4))
    shared.wait(sleeping, "it sleeps again")
