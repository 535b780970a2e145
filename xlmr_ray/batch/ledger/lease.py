"""Who drives a run, so that two launches of one job do not do its work twice.

It saves cost and no row depends on it: what is done is what has a record. So a driver whose renewals fail goes on, and
stops only when it sees that another one took its place.

    _runs/<run_id>/lease.json             created if absent; renewed, taken over and released if unchanged

No two clocks are compared: a lease has expired when its object stayed the same for its `ttl` by the waiting driver's
own monotonic clock. A driver that ended without a word on this very machine is known by its process, and not waited
for.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from xlmr_ray.batch.ledger.json_by_line import VERSION, Damaged, canonical, parsed
from xlmr_ray.batch.ledger.record import new_attempt
from xlmr_ray.batch.store.base import Changed, Exists, Store
from xlmr_ray.errors import JobFailed, UserError

log = logging.getLogger(__name__)

TTL = 60.0  # seconds without a sign of life, after which a run is taken over
TTL_VARIABLE = "XLMR_RAY_LEASE_SECONDS"
WAIT = 24 * 3600.0  # seconds for which a launch waits for another one of the same run
LOOK = 5.0  # seconds between two looks at somebody else's lease


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lease says. `driver` is a launch's own name; `process` tells it among all processes of its machine, where
    that can be had; times are in seconds since the epoch by the clock of `host`.
    """

    driver: str
    host: str
    pid: int
    process: str
    started: float
    renewed: float
    ttl: float
    released: bool

    def __str__(self) -> str:
        if not self.driver:
            return "a driver whose lease cannot be read (damaged, or of another version)"
        started = datetime.fromtimestamp(self.started, UTC)
        return f"process {self.pid} on {self.host} (since {started:%Y-%m-%d %H:%M:%S} UTC by its clock)"

    def to_bytes(self) -> bytes:
        return canonical({"version": VERSION, **asdict(self)})


# Waited for like any other: somebody may well drive.
UNREADABLE = Holder("", "", 0, "", 0.0, 0.0, TTL, False)


def lease_key(run_id: str) -> str:
    return f"_runs/{run_id}/lease.json"


def lease_ttl() -> float:
    """`XLMR_RAY_LEASE_SECONDS`, else a minute. Raises UserError where that is no number of seconds."""
    text = os.environ.get(TTL_VARIABLE)
    try:
        value = TTL if not text else float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= 86400.0:
        raise UserError(f"{TTL_VARIABLE}: want seconds from 1 to 86400, got {text!r}")
    return value


def holder(store: Store, run_id: str) -> Holder | None:
    """Who drives a run: None where nobody does, or did so and has ended in order.

    A driver that was killed still stands there, with the time of its last renewal.
    """
    found = _read(store, run_id)
    return None if found is None or found[0].released else found[0]


@contextlib.contextmanager
def leased(
    store: Store,
    run_id: str,
    *,
    wait: float = WAIT,
    ttl: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """The run's lease, held and renewed in a thread until it is left.

    Where another driver has it, waits for `wait` seconds at most until that one ends or gives no sign of life for its
    `ttl`; `tell` gets a line for each. Raises JobFailed that says who drives where it still does.
    """
    own = _this_holder(lease_ttl() if ttl is None else ttl)
    etag = _acquire(store, run_id, own, wait=wait, tell=tell, clock=clock, sleep=sleep)
    lease = Lease(_hurried(store, own.ttl / 4), run_id, own, etag, clock=clock)
    stop = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(lease, stop), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        lease.release()


class Lease:
    """A lease that is held, until `check` says otherwise."""

    def __init__(self, store: Store, run_id: str, own: Holder, etag: str, *, clock: Callable[[], float]) -> None:
        self.store, self.run_id, self.own, self.etag, self.clock = store, run_id, own, etag, clock
        self.renewed = self.tried = clock()
        self.taken_by: Holder | None = None
        self.busy = threading.Lock()

    def check(self) -> None:
        """Raises JobFailed where another driver has taken the run over, as it may when this one was paused."""
        # A driver that wakes up must not go on until its thread happens to look.
        if self.clock() - max(self.renewed, self.tried) > self.own.ttl:
            self.renew()
        if self.taken_by is not None:
            raise JobFailed(
                f"run {self.run_id} in {self.store.url('')}: this driver gave no sign of life for over "
                f"{self.own.ttl:.0f} s, and was replaced by {self.taken_by}; it stops here, what it committed stays"
            )

    def renew(self) -> None:
        """One renewal. What fails is tried again later: a store that is slow for a while is no reason to stop."""
        with self.busy:
            if self.taken_by is not None:
                return
            self.tried = self.clock()
            try:
                self._write(replace(self.own, renewed=round(time.time(), 3)))
                self.renewed = self.clock()
            except (JobFailed, UserError, OSError) as error:
                log.warning("the lease of run %s could not be renewed: %s", self.run_id, error)

    def release(self) -> None:
        """Leaves the run to whoever wants it. Failing that, others wait until it expires."""
        with self.busy, contextlib.suppress(JobFailed, UserError, OSError):
            if self.taken_by is None:
                self._write(replace(self.own, renewed=round(time.time(), 3), released=True))

    def _write(self, content: Holder) -> None:
        while True:
            try:
                self.etag = self.store.replace(lease_key(self.run_id), content.to_bytes(), self.etag)
                return
            except Changed:
                found = _read(self.store, self.run_id)
            # A write whose answer was lost is ours all the same.
            if found is not None and found[0].driver != self.own.driver:
                self.taken_by = found[0]
                return
            if found is not None:
                self.etag = found[1]
                continue
            try:  # somebody removed it
                self.etag = self.store.create(lease_key(self.run_id), content.to_bytes())
                return
            except Exists:
                continue


def _renew_until(lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(lease.own.ttl / 4) and lease.taken_by is None:
        lease.renew()


def _acquire(
    store: Store,
    run_id: str,
    own: Holder,
    *,
    wait: float,
    tell: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> str:
    key = lease_key(run_id)
    begun = since = clock()
    seen: str | None = None
    named: str | None = None
    while True:
        found = _read(store, run_id)
        now = clock()
        with contextlib.suppress(Exists, Changed):
            if found is None:
                return store.create(key, own.to_bytes())
            other, etag = found
            if etag != seen:
                seen, since = etag, now
            expired = now - since >= other.ttl
            if other.released or expired or _is_gone(other):
                etag = store.replace(key, own.to_bytes(), etag)
                if not other.released:
                    reason = f"has given no sign of life for {other.ttl:.0f} s" if expired else "is gone"
                    tell(f"run {run_id}: {other} {reason}; going on in its place")
                return etag
            if now - begun >= wait:
                waited = f"; it still did after {wait:,.0f} s" if wait else ""
                raise JobFailed(
                    f"run {run_id} in {store.url('')}: {other} drives it{waited}; let it end, or end it, "
                    f"and run this again: it goes on {other.ttl:.0f} s after the last sign of life at the latest"
                )
            if named != other.driver:
                named = other.driver
                tell(f"run {run_id}: {other} drives it; waiting for it to end, at most {wait:,.0f} s")
            sleep(max(0.01, min(LOOK, other.ttl / 4, since + other.ttl - now, begun + wait - now)))


def _read(store: Store, run_id: str) -> tuple[Holder, str] | None:
    key = lease_key(run_id)
    try:
        data, etag = store.get(key)
    except FileNotFoundError:
        return None
    try:
        content = parsed(data, store.url(key))
        if content.pop("version", None) == VERSION:
            return Holder(**content), etag
    except (Damaged, TypeError):
        pass
    return UNREADABLE, etag


def _hurried(store: Store, seconds: float) -> Store:
    """The same store, on the same connections, that gives an operation up after so long: the next renewal is due."""
    quick = copy.copy(store)
    if hasattr(quick, "deadline"):
        quick.deadline = min(quick.deadline, seconds)
    return quick


# Processes


def _this_holder(ttl: float) -> Holder:
    now = round(time.time(), 3)
    return Holder(new_attempt(), platform.node(), os.getpid(), _process(os.getpid()), now, now, ttl, False)


def _process(pid: int) -> str:
    """The system's boot, the process's namespace and the moment of its start: no other process has the same. Empty
    where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else f"{boot} {namespace} {pid} {start}"


def _is_gone(other: Holder) -> bool:
    """Whether the holder was a process of this machine and is there no more."""
    own = _process(os.getpid()).split()[:2]
    return bool(own) and other.process.split()[:2] == own and _process(other.pid) != other.process
