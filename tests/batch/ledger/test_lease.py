import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from tests.batch.runs import RUN
from xlmr_ray.batch.ledger import lease as module
from xlmr_ray.batch.ledger.lease import Holder, holder, lease_key, lease_ttl, leased
from xlmr_ray.batch.store.base import Changed
from xlmr_ray.errors import JobFailed, UserError

ELSEWHERE = Holder("0123456789abcdef", "node-7", 12, "", 1_700_000_000.0, 1_700_000_000.0, 60.0, False)


class Clock:
    """Time that passes only in `sleep`, and what is called after each one."""

    def __init__(self):
        self.now = 1000.0
        self.each = lambda now: None

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds
        self.each(self.now)


@pytest.fixture
def clock():
    return Clock()


def take(store, clock, **more):
    return leased(store, RUN, clock=clock, sleep=clock.sleep, **{"ttl": 60.0, **more})


def test_nobody_then_us_then_nobody(store):
    assert holder(store, RUN) is None
    with leased(store, RUN) as lease:
        found = holder(store, RUN)
        assert (found.driver, found.pid, found.ttl) == (lease.own.driver, os.getpid(), 60.0)
        assert abs(found.renewed - time.time()) < 60
        assert f"process {os.getpid()} on {found.host}" in str(found)
        lease.check()
    assert holder(store, RUN) is None
    with leased(store, RUN, wait=0):  # what was released is free
        assert holder(store, RUN) is not None


def test_a_renewal_is_seen_and_holds_on_to_the_lease(store):
    with leased(store, RUN) as lease:
        before = store.get(lease_key(RUN))[1]
        for _ in range(3):
            lease.renew()
        assert store.get(lease_key(RUN))[1] == lease.etag != before
        lease.check()


def test_it_is_renewed_while_it_is_held(local, monkeypatch):
    with leased(local, RUN, ttl=0.2) as lease:
        etags = set()
        end = time.monotonic() + 20
        while len(etags) < 4 and time.monotonic() < end:
            etags.add(local.get(lease_key(RUN))[1])
            time.sleep(0.01)
        assert len(etags) == 4
        lease.check()


def test_a_live_driver_is_waited_for_so_long_and_no_longer(local, clock):
    beat = [0]

    def renewed(now):
        beat[0] += 1
        local.put(lease_key(RUN), replace(ELSEWHERE, renewed=now).to_bytes())

    local.put(lease_key(RUN), ELSEWHERE.to_bytes())
    clock.each = renewed
    said = []
    with pytest.raises(JobFailed) as failed, take(local, clock, wait=600, tell=said.append):
        pass
    assert 600 <= clock.now - 1000 < 610
    assert said == [
        f"run {RUN}: process 12 on node-7 (since 2023-11-14 22:13:20 UTC by its clock) drives it; waiting for it to "
        "end, at most 600 s"
    ]
    assert "process 12 on node-7" in str(failed.value)
    assert "it still did after 600 s" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert holder(local, RUN).driver == ELSEWHERE.driver


def test_it_may_be_asked_not_to_wait(local, clock):
    local.put(lease_key(RUN), ELSEWHERE.to_bytes())
    with pytest.raises(JobFailed, match="process 12 on node-7"), take(local, clock, wait=0):
        pass
    assert clock.now == 1000


def test_a_driver_that_ends_is_followed_at_once(local, clock):
    local.put(lease_key(RUN), ELSEWHERE.to_bytes())

    def ended(now):
        if now > 1030:
            local.put(lease_key(RUN), replace(ELSEWHERE, released=True).to_bytes())

    clock.each = ended
    said = []
    with take(local, clock, tell=said.append) as lease:
        assert clock.now < 1040
        assert holder(local, RUN).driver == lease.own.driver
    assert len(said) == 1


def test_a_silent_driver_is_replaced_after_its_own_ttl(store, clock):
    store.put(lease_key(RUN), replace(ELSEWHERE, ttl=300.0).to_bytes())
    said = []
    with take(store, clock, tell=said.append) as lease:
        assert 1300 <= clock.now < 1310
        assert holder(store, RUN).driver == lease.own.driver
    assert said[1] == f"run {RUN}: {ELSEWHERE} has given no sign of life for 300 s; going on in its place"


def test_no_clock_but_ones_own_decides(local, clock):
    """Whatever the other machine believes the time to be, a renewal keeps its lease and silence loses it."""
    for wrong in (0.0, 4e9):
        local.put(lease_key(RUN), replace(ELSEWHERE, renewed=wrong, started=wrong).to_bytes())
        start = clock.now
        clock.each = lambda now, start=start, wrong=wrong: (
            local.put(lease_key(RUN), replace(ELSEWHERE, renewed=wrong, pid=int(now)).to_bytes())
            if now - start < 200
            else None
        )
        with take(local, clock):
            assert 255 <= clock.now - start <= 270


@pytest.mark.parametrize("content", [b"", b"not JSON", b"[]", b'{"version": 99}', b'{"version": 1, "driver": "x"}'])
def test_a_lease_that_cannot_be_read_is_waited_for_and_then_replaced(local, clock, content):
    local.put(lease_key(RUN), content)
    assert "cannot be read" in str(holder(local, RUN))
    with take(local, clock) as lease:
        assert 1060 <= clock.now < 1070
        assert holder(local, RUN).driver == lease.own.driver


def test_two_that_wait_do_not_both_get_it(store):
    store.put(lease_key(RUN), replace(ELSEWHERE, ttl=0.3).to_bytes())
    inside, most, done = [0], [0], []
    lock = threading.Lock()

    def launch():
        with leased(store, RUN, ttl=30.0):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            with lock:
                inside[0] -= 1
                done.append(1)

    threads = [threading.Thread(target=launch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3
    assert most[0] == 1


def test_a_driver_that_was_replaced_stops_and_leaves_the_lease_alone(store, clock):
    with take(store, clock) as lease:
        clock.now += 61  # paused
        store.replace(lease_key(RUN), ELSEWHERE.to_bytes(), store.get(lease_key(RUN))[1])
        with pytest.raises(JobFailed) as failed:
            lease.check()
        assert "was replaced by process 12 on node-7" in str(failed.value)
        assert "\n" not in str(failed.value)
    assert holder(store, RUN) == ELSEWHERE


def test_a_driver_that_was_paused_and_not_replaced_goes_on(store, clock):
    with take(store, clock) as lease:
        before = store.get(lease_key(RUN))[1]
        clock.now += 500
        lease.check()
        assert store.get(lease_key(RUN))[1] != before
        store.delete(lease_key(RUN))  # somebody tidied up
        clock.now += 500
        lease.check()
        assert holder(store, RUN).driver == lease.own.driver


class Failing:
    """A store whose writes fail while told to; `lost`: they succeed, but their answers are lost."""

    def __init__(self, store):
        self.store, self.failing, self.lost, self.tries = store, False, False, 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def __copy__(self):
        return self

    def replace(self, key, data, etag):
        self.tries += 1
        if self.failing:
            raise JobFailed("503 SlowDown")
        found = self.store.replace(key, data, etag)
        if self.lost:
            raise JobFailed("connection reset")
        return found


def test_a_store_that_throttles_ends_nothing(local, clock):
    failing = Failing(local)
    with take(failing, clock) as lease:
        failing.failing = True
        for _ in range(100):
            clock.now += 30
            lease.check()
        assert 25 <= failing.tries <= 60  # no storm of requests either
        failing.failing = False
        clock.now += 100
        lease.check()
        assert holder(local, RUN).driver == lease.own.driver


def test_a_renewal_whose_answer_was_lost_is_ours(store, clock):
    failing = Failing(store)
    with take(failing, clock) as lease:
        failing.lost = True
        lease.renew()
        failing.lost = False
        lease.renew()
        lease.check()
        assert store.get(lease_key(RUN))[1] == lease.etag
    assert holder(store, RUN) is None


def test_a_release_that_fails_is_no_failure(local, clock):
    failing = Failing(local)
    with contextlib.ExitStack() as held:
        held.enter_context(take(failing, clock))
        failing.failing = True
    assert holder(local, RUN) is not None  # it will expire


HOLD = """
import sys, time
from xlmr_ray.batch.ledger.lease import leased
from xlmr_ray.batch.store.open import open_store
with leased(open_store(sys.argv[1]), sys.argv[2], ttl=1000.0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_driver_of_this_machine_is_not_waited_for(local, clock):
    process = subprocess.Popen([sys.executable, "-c", HOLD, local.root, RUN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert holder(local, RUN).pid == process.pid
        with pytest.raises(JobFailed, match=f"process {process.pid} on "), take(local, clock, wait=0):
            pass
        process.send_signal(signal.SIGSTOP)  # paused is not gone
        with pytest.raises(JobFailed, match=f"process {process.pid} on "), take(local, clock, wait=0):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its end takes a moment; the clock here none
        said = []
        with take(local, clock, wait=10, tell=said.append):  # not even reaped yet
            assert clock.now < 1011
        assert said[-1].endswith("is gone; going on in its place")
    finally:
        process.kill()
        process.wait()


def test_another_process_with_the_same_number_is_not_the_driver(local, clock):
    own = module._process(os.getpid())
    assert own
    before = replace(ELSEWHERE, pid=os.getpid(), process=own.rpartition(" ")[0] + " 1")
    local.put(lease_key(RUN), before.to_bytes())
    with take(local, clock, wait=0):
        assert holder(local, RUN).process == own


def test_where_processes_cannot_be_told_apart_the_ttl_decides(local, clock, monkeypatch):
    monkeypatch.setattr(module, "_process", lambda pid: "")
    local.put(lease_key(RUN), ELSEWHERE.to_bytes())
    with take(local, clock):
        assert clock.now >= 1060


def test_what_it_holds_is_no_secret_and_one_line(local):
    with leased(local, RUN):
        content = json.loads(local.get(lease_key(RUN))[0])
    assert set(content) == {"version", *Holder.__dataclass_fields__}


def test_the_ttl_from_the_environment(monkeypatch):
    assert lease_ttl() == 60.0
    monkeypatch.setenv("XLMR_RAY_LEASE_SECONDS", "5")
    assert lease_ttl() == 5.0
    for wrong in ("soon", "0", "-3", "nan", "1e9"):
        monkeypatch.setenv("XLMR_RAY_LEASE_SECONDS", wrong)
        with pytest.raises(UserError, match="XLMR_RAY_LEASE_SECONDS: want seconds"):
            lease_ttl()


def test_changed_is_what_a_lost_lease_looks_like(store):
    """What the protocol rests on: a renewal by an old etag is refused."""
    etag = store.create("lease", b"1")
    store.replace("lease", b"2", etag)
    with pytest.raises(Changed):
        store.replace("lease", b"3", etag)
