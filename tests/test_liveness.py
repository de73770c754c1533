"""Working, slow, hung and spinning processes, told apart by progress and CPU use."""

from __future__ import annotations

import os
import subprocess
import sys

from lbhost.linux import all_waited_s, runnable, waited_s
from lbhost.supervisor.liveness import (
    Budget,
    Look,
    Verdict,
    Watch,
    begin,
    judge,
    quiet_budget,
    step_budget,
)
from serving import spinning, wait_for

TICK = 0.25


class Process:
    """Looks at an imagined process every 250 ms."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.watch: Watch | None = None
        self.now = 100.0
        self.cpu = 5.0
        self.steps = 0

    def run(
        self, seconds: float, *, busy: bool = True, cpu: float = 0.0, steps: bool = False
    ) -> tuple[Verdict, float]:
        """The first verdict that is not FINE and when it came, or FINE after the whole time."""
        began = self.now
        while self.now < began + seconds:
            self.now += TICK
            self.cpu += cpu * TICK
            self.steps += steps
            look = Look(self.now, busy, (self.steps,), self.cpu)
            self.watch, verdict = judge(self.watch, look, self.budget)
            if verdict is not Verdict.FINE:
                return verdict, self.now - began
        return Verdict.FINE, seconds


def test_budgets_follow_the_predicted_step() -> None:
    assert step_budget(0.05) == Budget(1.0, 10.0)
    assert step_budget(0.4) == Budget(2.0, 20.0)
    assert step_budget(0.0) == Budget(1.0, 60.0), "no step measured yet: be patient with CPU use"


def test_a_busy_process_that_stands_still_is_hung_within_its_budget() -> None:
    process = Process(step_budget(0.05))
    assert process.run(3, cpu=0.9, steps=True)[0] is Verdict.FINE
    verdict, after = process.run(10)
    assert verdict is Verdict.HUNG
    assert 1.0 <= after <= 1.5


def test_a_slow_step_gets_its_own_budget() -> None:
    process = Process(step_budget(0.4))
    process.run(1, cpu=0.9, steps=True)
    verdict, after = process.run(10)
    assert verdict is Verdict.HUNG
    assert 2.0 <= after <= 2.5


def test_a_process_that_burns_cpu_gets_ten_times_that() -> None:
    process = Process(step_budget(0.05))
    process.run(1, cpu=0.9, steps=True)
    verdict, after = process.run(30, cpu=1.0)
    assert verdict is Verdict.SPINNING
    assert 10.0 <= after <= 10.5


def test_a_process_that_stops_burning_in_the_middle_is_hung_from_then_on() -> None:
    process = Process(step_budget(0.05))
    process.run(1, cpu=0.9, steps=True)
    assert process.run(4, cpu=1.0)[0] is Verdict.FINE
    verdict, after = process.run(10)
    assert verdict is Verdict.HUNG
    assert 1.0 <= after <= 1.5


def test_a_polling_thread_is_no_sign_of_work() -> None:
    process = Process(step_budget(0.05))
    process.run(1, cpu=0.9, steps=True)
    assert process.run(10, cpu=0.002)[0] is Verdict.HUNG


def test_idle_time_does_not_count() -> None:
    process = Process(step_budget(0.05))
    assert process.run(600, busy=False)[0] is Verdict.FINE
    assert process.run(0.75)[0] is Verdict.FINE
    verdict, _ = process.run(5)
    assert verdict is Verdict.HUNG


def test_a_worker_that_steps_slowly_is_never_hung() -> None:
    process = Process(step_budget(0.3))
    for _ in range(50):
        assert process.run(1.25, cpu=0.02)[0] is Verdict.FINE
        assert process.run(0.25, cpu=0.02, steps=True)[0] is Verdict.FINE


def test_a_fresh_watch_judges_nobody() -> None:
    process = Process(quiet_budget(5.0))
    process.run(4.5)
    process.now += 3600  # the laptop slept
    process.watch = None
    assert process.run(4.5)[0] is Verdict.FINE
    assert process.run(1)[0] is Verdict.HUNG


def test_without_an_end_to_burning_only_silence_kills() -> None:
    process = Process(quiet_budget(5.0))
    assert process.run(1000, cpu=1.0)[0] is Verdict.FINE
    assert process.run(6)[0] is Verdict.HUNG


def test_begin_is_a_watch_of_now() -> None:
    look = Look(1.0, True, (1,), 2.0)
    assert begin(look) == Watch(look, 1.0, 1.0, 2.0)


def test_a_niced_process_beside_a_hog_is_slow_and_not_spinning() -> None:
    process = Process(step_budget(0.5))  # 2.5 s without CPU, 25 s of CPU time
    process.run(1, cpu=0.9, steps=True)
    assert process.run(240, cpu=0.1)[0] is Verdict.FINE, "24 s of CPU time in 240"
    assert process.run(15, cpu=0.1)[0] is Verdict.SPINNING


def test_a_process_that_waits_for_a_cpu_is_not_hung() -> None:
    watch, now, verdict = None, 100.0, Verdict.FINE
    for n in range(40):
        look = Look(now + n * TICK, True, (1,), 5.0, waited_s=n * TICK)
        watch, verdict = judge(watch, look, step_budget(0.05))
        assert verdict is Verdict.FINE
    for n in range(40, 46):
        look = Look(now + n * TICK, True, (1,), 5.0, waited_s=39 * TICK)
        watch, verdict = judge(watch, look, step_budget(0.05))
    assert verdict is Verdict.HUNG


def test_a_process_that_has_waited_for_a_cpu_all_the_time_is_not_hung() -> None:
    """The kernel has not counted any of that yet."""
    watch, now, verdict = None, 100.0, Verdict.FINE
    for n in range(40):
        look = Look(now + n * TICK, True, (1,), 5.0, waited_s=1.0, runnable=True)
        watch, verdict = judge(watch, look, step_budget(0.05))
        assert verdict is Verdict.FINE
    for n in range(40, 46):
        look = Look(now + n * TICK, True, (1,), 5.0, waited_s=1.0)
        watch, verdict = judge(watch, look, step_budget(0.05))
    assert verdict is Verdict.HUNG


def test_who_is_ready_to_run_and_has_no_cpu_is_runnable() -> None:
    script = (
        "import os, sys\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "print(flush=True)\n"
        "while sys.argv[1] == 'spin': pass\n"
        "sys.stdin.read()\n"
    )
    for how in ("spin", "sleep"):
        with (
            spinning(min(os.sched_getaffinity(0))),
            subprocess.Popen(
                [sys.executable, "-c", script, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process,
        ):
            try:
                assert process.stdout is not None
                process.stdout.readline()
                if how == "spin":
                    assert all(runnable(process.pid) for _ in range(100))
                else:
                    wait_for(lambda: not runnable(process.pid), "it sleeps")
            finally:
                process.kill()
        assert not runnable(process.pid)


def test_a_thread_that_waits_for_a_cpu_counts_as_its_processs_wait() -> None:
    script = (
        "import hashlib, os, threading, time\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "data = bytes(10**7)\n"
        "def spin():\n"
        "    while True: hashlib.sha256(data)\n"  # without the GIL
        "for _ in range(2): threading.Thread(target=spin, daemon=True).start()\n"
        "print(flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            main = wait_for(lambda: waited_s(process.pid), "it has waited at all") or 0.0
            wait_for(lambda: (all_waited_s(process.pid) or 0.0) > main + 1.0, "its threads wait")
        finally:
            process.kill()
    assert all_waited_s(process.pid) is None
