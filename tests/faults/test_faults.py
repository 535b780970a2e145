"""The fault suite in short, for every test run: the commit protocol in processes that are killed at each step, behind
a faulty proxy, beside others; one real run whose actors are killed. `make faults` has all of it.
"""

import multiprocessing
import random
import re
import signal
import threading

import psutil
import pyarrow as pa
import pytest

from tests.faults.corpus import write_corpus, write_job
from tests.faults.lab import Tally
from tests.faults.life import RUN, changes, live, live_together, live_until, live_until_system_call, lived
from tests.faults.machines import ACTORS, actors_under, kill
from tests.faults.objects import damage_each, litter
from tests.faults.rows import difference, published
from tests.faults.stores import nth, sometimes
from tests.faulty_proxy import running_proxy
from tests.seaweed import ACCESS_KEY, SECRET_KEY
from xlmr_ray.batch.job import check_job, read_job
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed

PATIENCE = 120


@pytest.fixture(scope="module")
def processes():
    """Processes that start at once, from one that has imported what they need and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.life", "xlmr_ray.batch.store.s3"])
    return context


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What a life without faults publishes."""
    return lived(open_store(str(tmp_path_factory.mktemp("clean"))))


def ended(processes, target, *args):
    """The exit code of a process that does this."""
    process = processes.Process(target=target, args=args)
    process.start()
    process.join(PATIENCE)
    return process.exitcode


def assert_clean(clean, store):
    """A relaunch ends with a clean run's rows, one record a shard, and nothing beside them."""
    assert lived(store).bytes == clean.bytes
    records = list(committed(store, RUN))
    assert len({record.shard for record in records}) == len(records)
    named = {file.key for record in records for file in record.files}
    assert {entry.key for kind in ("data/", "errors/") for entry in store.list(kind)} == named
    assert verify(store).ok


def test_the_comparison_sees_what_is_lost_twice_and_changed(clean):
    output = clean.output
    fewer = type(clean)(output.slice(1), clean.errors)
    assert difference(clean, clean) == type(difference(clean, clean))(0, 0, True)
    assert (difference(clean, fewer).lost, difference(clean, fewer).same) == (1, False)
    more = type(clean)(pa.concat_tables([output.slice(0, 2), output]), clean.errors)
    assert (difference(clean, more).twice, difference(clean, more).lost) == (2, 0)
    scores = output.set_column(output.column_names.index("score"), "score", pa.array([9.0] * len(output), pa.float32()))
    assert not difference(clean, type(clean)(scores, clean.errors)).same


def test_sigkill_between_all_changes_of_a_folder(processes, clean, tmp_path):
    steps = changes(open_store(str(tmp_path / "counted")))
    assert len(steps) > 4 * 3
    for step, name in enumerate(steps):
        out = str(tmp_path / f"{step}")
        assert ended(processes, live_until, out, None, step) == -signal.SIGKILL, (step, name)
        assert_clean(clean, open_store(out))


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_sigkill_within_a_write_to_a_folder(processes, clean, tmp_path, call):
    chance = random.Random(call)
    struck = 0
    for number in chance.sample(range(1, 30), 3):
        out = str(tmp_path / f"{number}")
        struck += ended(processes, live_until_system_call, out, call, number, number % 2 == 0) == -signal.SIGKILL
        assert_clean(clean, open_store(out))
    assert struck


def test_sigkill_between_changes_of_a_bucket(processes, clean, seaweed):
    steps = changes(open_store(seaweed.new_folder(), options=seaweed.options))
    for step in random.Random(1).sample(range(len(steps)), 4):
        out = seaweed.new_folder()
        assert ended(processes, live_until, out, seaweed.options, step) == -signal.SIGKILL
        assert_clean(clean, open_store(out, options=seaweed.options))


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_three_drivers_at_once(processes, clean, tmp_path, seaweed, where):
    options = seaweed.options if where == "bucket" else None
    for number in range(2):
        out = seaweed.new_folder() if where == "bucket" else str(tmp_path / str(number))
        gate = processes.Barrier(3)
        together = [processes.Process(target=live_together, args=(out, options, gate)) for _ in range(3)]
        for process in together:
            process.start()
        for process in together:
            process.join(PATIENCE)
        assert [process.exitcode for process in together] == [0, 0, 0]
        assert_clean(clean, open_store(out, options=options))


@pytest.fixture(scope="module")
def faulty(seaweed):
    """A store behind a separate proxy, for all faults: its connection costs more than they do."""
    with running_proxy(seaweed.endpoint) as proxy:
        options = {"endpoint_url": proxy.endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY}
        yield open_store(seaweed.new_folder(), options=options, deadline=30.0), proxy


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("503 for a tenth", sometimes(503, 0.1, seed=1)),
        ("503 for half", sometimes(503, 0.5, seed=2)),
        ("429 for a third", sometimes(429, 0.3, seed=3)),
        ("resets", sometimes("reset", 0.2, seed=4)),
        ("answers lost", nth("PUT", "lost", 2)),
        ("conflicts", nth("PUT", 409, 2, re.compile(r"\.json"))),
        ("cut bodies", nth("GET", "cut", 2)),
        ("500", sometimes(500, 0.2, seed=5)),
    ],
)
def test_a_life_behind_a_faulty_proxy(clean, faulty, seaweed, name, fault):
    store, proxy = faulty
    store.prefix = f"{name.replace(' ', '-')}-{random.randrange(1 << 30)}/"
    proxy.clear()
    proxy.fault = fault
    live(store)
    struck = len(proxy.injected)
    proxy.clear()
    assert struck >= 3
    assert_clean(clean, store)


def test_credentials_that_expire_in_the_middle(clean, faulty):
    """The life ends at the first refusal, with one request, and goes on once they are renewed."""
    store, proxy = faulty
    store.prefix = f"expired-{random.randrange(1 << 30)}/"
    proxy.clear()
    proxy.fault = lambda method, path: 403 if len(proxy.requests) > 12 else None
    with pytest.raises(JobFailed, match=r"was refused \(403( ExpiredToken)?\); check the credentials"):
        live(store)
    assert len(proxy.injected) == 1
    proxy.clear()
    assert_clean(clean, store)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_damage_is_named_and_orphans_are_not_read(clean, tmp_path, seaweed, where):
    store = open_store(str(tmp_path / "out"))
    if where == "bucket":
        store = open_store(seaweed.new_folder(), options=seaweed.options)
    live(store)
    tally = Tally()
    damage_each(tally, store)
    litter(tally, store, clean)
    assert tally.ok, tally
    assert tally.injected > 20
    assert_clean(clean, store)


def test_an_actor_of_each_kind_is_killed_in_mid_run(ray_session, tmp_path):
    """A real run: Ray starts each again, and no row is lost or there twice."""
    write_corpus(tmp_path / "in")
    outs = [str(tmp_path / name) for name in ("clean", "struck")]
    jobs = [check_job(read_job(write_job(tmp_path / "job.yaml", str(tmp_path / "in"), out)), "job") for out in outs]
    run_job(jobs[0], quiet=True)
    store = open_store(outs[1])
    struck, over = [], threading.Event()

    def strike():
        for records, name in enumerate(ACTORS, start=2):
            while not over.wait(0.02) and sum(1 for _ in store.list("_runs/")) < 2 * records:
                pass
            found = [] if over.is_set() else actors_under(psutil.Process(), name)
            struck.extend(name for process in found[:1] if kill(process))

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        run_job(jobs[1], quiet=True)
    finally:
        over.set()
        thread.join()
    assert struck
    found = difference(published(open_store(outs[0])), published(store))
    assert (found.lost, found.twice, found.same) == (0, 0, True)
    assert verify(store).ok
