"""Calls by the workers of a Ray that is there, and by the driver where there is none or they fail."""

import os

import pytest

from xlmr_ray.batch import workers


def where(number):
    return number, os.getpid()


def only_here(number, pid):
    if os.getpid() != pid:
        raise RuntimeError("a machine that lacks something")
    return number


def never(number):
    raise ValueError(f"item {number}")


def test_without_ray(monkeypatch):  # which another test of this process may have started
    monkeypatch.setattr(workers.ray, "is_initialized", lambda: False)
    assert list(workers.mapped(where, range(3))) == [(0, os.getpid()), (1, os.getpid()), (2, os.getpid())]


def test_in_order_and_elsewhere(ray_session, monkeypatch):
    monkeypatch.setattr(workers, "MOST", 8)  # whatever the machine has
    taken = []

    def items():
        for number in range(40):
            taken.append(number)
            yield number

    found = workers.mapped(where, items())
    first = next(found)
    assert first[0] == 0
    assert len(taken) == 8  # no more are under way
    rest = list(found)
    assert [number for number, _ in [first, *rest]] == list(range(40))
    assert os.getpid() not in {pid for _, pid in rest}


def test_what_a_worker_cannot_do_is_done_here(ray_session):
    pid = os.getpid()
    calls = [workers.Workers().submit(only_here, number, pid) for number in range(3)]
    assert [call.result() for call in calls] == [0, 1, 2]


def test_an_error_is_the_one_that_it_was(ray_session):
    with pytest.raises(ValueError, match=r"^item 0$") as raised:
        list(workers.mapped(never, range(3)))
    assert type(raised.value) is ValueError
