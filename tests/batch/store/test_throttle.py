"""The limit on requests under way: halved by one sign of throttling, raised by answers, never passed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.seaweed import ACCESS_KEY, SECRET_KEY
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.batch.store.throttle import MOST, Throttle, throttle_of


class Slow(Exception): ...


def is_slow(error):
    return isinstance(error, Slow)


def fail(error):
    raise error


def test_one_sign_halves_and_answers_raise():
    throttle = Throttle(16)
    for expected in (8, 4, 2, 1, 1):
        with pytest.raises(Slow):
            throttle.call(lambda: fail(Slow()), is_slow)
        assert throttle.limit == expected
    limits = []
    while throttle.limit < 16:
        assert throttle.call(lambda: "answer", is_slow) == "answer"
        limits.append(throttle.limit)
    assert limits == sorted(limits)
    assert 16 < len(limits) < 16 * 16  # about one more a round of answers
    throttle.call(lambda: None, is_slow)
    assert throttle.limit == 16


def test_requests_that_were_under_way_together_are_one_sign():
    throttle = Throttle(8)
    together = threading.Barrier(8)

    def slow():
        together.wait()
        raise Slow

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(throttle.call, slow, is_slow) for _ in range(8)]:
            assert isinstance(future.exception(), Slow)
    assert throttle.limit == 4
    assert throttle.running == 0


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
def test_other_failures_change_nothing_and_give_the_turn_back(error):
    throttle = Throttle(2)
    for _ in range(5):
        with pytest.raises(type(error)):
            throttle.call(lambda: fail(error), is_slow)
    assert (throttle.running, throttle.limit) == (0, 2)


def test_never_more_than_the_limit():
    throttle = Throttle(16)
    seen = []

    def request(i):
        seen.append((throttle.running, int(throttle.limit)))
        time.sleep(0.002)
        if i % 7 == 0:
            raise Slow

    def call(i):
        try:
            throttle.call(lambda: request(i), is_slow)
        except Slow:
            return

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(call, range(200)))
    assert max(running for running, _ in seen) <= 16
    assert min(limit for _, limit in seen) < 8


def test_one_for_a_store_in_a_process():
    assert throttle_of("a") is throttle_of("a")
    assert throttle_of("a") is not throttle_of("b")


def test_a_store_that_throttles_gets_fewer_requests_at_once(seaweed, proxy):
    """Between client and server, counted by the proxy: while it answers 503, few are under way; later, many again."""
    options = {"endpoint_url": proxy.endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY}
    store = open_store(seaweed.new_folder(), options=options, deadline=240.0)
    store.put("k", b"x")
    throttled, at_once = 70, {True: [], False: []}  # counted, not timed: a busy machine is slow, too

    def fault(method, path):
        slow = len(at_once[True]) < throttled
        at_once[slow].append(proxy.under_way)
        if not slow:
            time.sleep(0.002)
        return 503 if slow else None

    proxy.fault = fault
    with ThreadPoolExecutor(16) as pool:
        assert all(data == b"x" for data, _ in pool.map(lambda _: store.get("k"), range(300)))
    # 16 threads, a limit of 32 halved after each round: at most 16 + 16 + 8 + 4 requests before it is 2.
    assert max(at_once[True][44:]) <= 2
    assert max(at_once[False]) > 2
    assert throttle_of(f"{proxy.endpoint} {store.bucket}").limit > MOST / 8
