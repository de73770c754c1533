"""What the supervisor asks the gateway: pages, limits, and a gateway that does not answer."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fake_admin import live_request
from lbhost import control
from lbhost.errors import GatewaySilentError, RequestNotFoundError
from lbhost.supervisor.questions import OPEN, Questions

pytestmark = pytest.mark.anyio


class Gateway:
    """Answers in pages of two, as long as it is not silent."""

    def __init__(self, count: int, limit_s: float = 60.0) -> None:
        self.rows = [live_request(f"req_{number}") for number in range(count)]
        self.asked: list[control.Control] = []
        self.silent = self.gone = False
        self.questions = Questions(self.send, limit_s)

    def send(self, message: control.Control) -> bool:
        if self.gone:
            return False
        self.asked.append(message)
        if self.silent:
            return True
        loop = asyncio.get_running_loop()
        if isinstance(message, control.AskRequests):
            at = message.after
            after = at + 2 if at + 2 < len(self.rows) else None
            page = tuple(self.rows[at : at + 2])
            told = control.ToldRequests(message.number, page, len(self.rows), after)
            loop.call_soon(self.questions.told, told)
        elif isinstance(message, control.CancelRequest):
            count = sum(row.id == message.request for row in self.rows)
            loop.call_soon(self.questions.told, control.Cancelled(message.number, count))
        return True


async def test_pages_are_put_together() -> None:
    gateway = Gateway(5)
    found = await gateway.questions.requests()
    assert [row.id for row in found.requests] == [f"req_{number}" for number in range(5)]
    assert found.total == 5
    assert len(gateway.asked) == 3


async def test_no_more_pages_are_asked_for_than_the_limit_needs() -> None:
    gateway = Gateway(9)
    found = await gateway.questions.requests(3)
    assert (len(found.requests), found.total) == (3, 9)
    assert len(gateway.asked) == 2


async def test_a_gateway_that_does_not_answer_is_a_503_and_its_late_answer_nothing() -> None:
    gateway = Gateway(1, limit_s=0.05)
    gateway.silent = True
    with pytest.raises(GatewaySilentError, match=r"within 0\.05 s") as caught:
        await gateway.questions.requests()
    assert caught.value.status == 503
    gateway.questions.told(control.ToldRequests(1, (), 0, None))
    gateway.questions._limit_s = 60.0
    gateway.silent = False
    assert (await gateway.questions.requests()).total == 1


async def test_one_that_is_not_there_or_ends_meanwhile_is_said_at_once() -> None:
    gateway = Gateway(1)
    gateway.gone = True
    with pytest.raises(GatewaySilentError, match="not there"):
        await gateway.questions.cancel("req_0")
    gateway.gone, gateway.silent = False, True
    patient = Questions(gateway.send, limit_s=60.0)
    waiting = asyncio.ensure_future(patient.requests())
    await asyncio.sleep(0)
    patient.lost()
    with pytest.raises(GatewaySilentError, match="just ended"):
        await waiting


async def test_only_so_many_questions_are_open_at_once() -> None:
    gateway = Gateway(1)
    gateway.silent = True
    patient = Questions(gateway.send, limit_s=60.0)
    waiting = [asyncio.ensure_future(patient.requests()) for _ in range(OPEN)]
    await asyncio.sleep(0)
    with pytest.raises(GatewaySilentError, match="open already"):
        await patient.requests()
    patient.lost()
    assert len(await asyncio.gather(*waiting, return_exceptions=True)) == OPEN


async def test_a_cancel_says_what_it_ended() -> None:
    gateway = Gateway(2)
    assert await gateway.questions.cancel("req_1") == "request req_1 is ended"
    gateway.rows[0] = msgspec.structs.replace(gateway.rows[0], id="req_1")
    assert "2 of that id" in await gateway.questions.cancel("req_1")
    with pytest.raises(RequestNotFoundError, match="'req_9'"):
        await gateway.questions.cancel("req_9")
