"""The order of what waits for a worker."""

from __future__ import annotations

import pytest

from lbhost import order, wire
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.job_queue import JobQueue


def job(
    number: int, place: float, *, tokens: int = 10, rank: int = order.DEFAULT, client: str = ""
) -> Job:
    prompt = wire.pack_tokens(list(range(tokens)))
    work = Work(prompt, tokens, 50, wire.Sampling(), rank=rank, client=client)
    made = Job(number, work, arrived=place)
    made.order = place
    return made


def begun(made: Job) -> Job:
    made.put(TextDelta("a", (7,)))
    made.to_be_continued()
    return made


def taken(queue: JobQueue, *, long_may: bool, flex_may: bool) -> list[int]:
    order_of: list[int] = []
    for one in queue.walk(lambda: long_may, lambda: flex_may):
        order_of.append(one.number)
        queue.remove(one)
    return order_of


def test_what_has_output_waits_in_no_line_for_long_or_flex() -> None:
    queue = JobQueue()
    jobs = [
        job(1, 5.0),
        begun(job(2, 1.0, rank=order.FLEX)),
        begun(job(3, 2.0, tokens=900)),
        job(4, 0.5, tokens=900),
        job(5, 0.0, rank=order.FLEX),
    ]
    for one in jobs:
        queue.add(one)
    assert queue.flex == 1
    assert queue.ahead(jobs[1]) == 1  # the long one that came first
    assert taken(queue, long_may=False, flex_may=False) == [2, 3, 1]
    assert taken(queue, long_may=True, flex_may=True) == [4, 5]


def test_priority_requests_that_wait_are_counted() -> None:
    queue = JobQueue()
    first, second = job(1, 1.0, rank=order.PRIORITY), begun(job(2, 2.0, rank=order.PRIORITY))
    for one in (first, second, job(3, 3.0)):
        queue.add(one)
    assert queue.priority == 2
    queue.remove(first)
    assert queue.priority == 1


def test_the_work_that_waits_is_summed_up_by_class_and_client() -> None:
    queue = JobQueue()
    jobs = [
        job(1, 0.0, tokens=100, client="one", rank=order.PRIORITY),
        job(2, 0.0, tokens=200, client="one"),
        job(3, 0.0, tokens=400, client="other"),
        job(4, 0.0, tokens=800, client="one", rank=order.FLEX),
        job(5, 0.0, tokens=1600, client="one"),
    ]
    for made in jobs:
        made.cost_s = made.number * 10.0
        queue.add(made)
    assert queue.tokens() == sum(made.tokens_to_come for made in jobs) == 3100 + 5 * 50
    assert queue.tokens("one") == 2700 + 4 * 50
    assert queue.cost_s(order.FLEX) == 150.0
    assert queue.cost_s(order.DEFAULT) == 110.0
    assert queue.cost_s(order.DEFAULT, "one") == 80.0
    assert (queue.of_client("one"), queue.of_client("other")) == (4, 1)
    for made in jobs[:3]:
        queue.remove(made)
    assert (queue.of_client("one"), queue.of_client("other")) == (2, 0)
    assert (queue.tokens(), queue.tokens("other")) == (2400 + 2 * 50, 0)
    assert (queue.cost_s(order.FLEX), queue.cost_s(order.DEFAULT)) == (90.0, 50.0)
    going_on = begun(job(6, 0.0, client="one"))
    queue.add(going_on)
    assert queue.tokens() == 2500 + going_on.tokens_to_come
    assert queue.tokens("one") == 2500, "what has output is nobody's"


def test_what_is_not_in_cannot_be_taken_out() -> None:
    queue = JobQueue()
    one, same_place = job(1, 0.0), job(1, 0.0)
    queue.add(one)
    for other in (job(0, 0.0), same_place, job(2, 0.0), job(1, 0.0, client="nobody")):
        with pytest.raises(ValueError, match="not queued"):
            queue.remove(other)
    assert list(queue) == [one]


def test_a_job_that_goes_on_is_known_by_all_its_tokens() -> None:
    made = job(1, 0.0, tokens=64)
    before = made.chain
    for token in range(32):
        made.put(TextDelta("", (token,)))
    made.to_be_continued()
    assert made.chain[:2] == before
    assert len(made.chain) == 3
    assert (made.known_tokens, made.completion_tokens) == (96, 32)
    assert wire.unpack_tokens(made.done()) == list(range(32))
