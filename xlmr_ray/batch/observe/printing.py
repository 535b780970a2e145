"""What a command prints at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from xlmr_ray.batch.ledger.snapshot import Head, read_head
from xlmr_ray.batch.ledger.status import RECENT, Published, RunStatus, published, status
from xlmr_ray.batch.ledger.verify import Report
from xlmr_ray.batch.observe.drift import read_drift
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.store.fsspec import FsspecStore
from xlmr_ray.text.plural import plural
from xlmr_ray.text.progress_line import say

if TYPE_CHECKING:  # it imports ray, for which nobody should wait who asks for a status
    from xlmr_ray.batch.run import RunOutcome

MOST_RUNS = 20  # finished runs in a status, the latest ones


def print_run_summary(outcome: RunOutcome, console: Console) -> None:
    manifest, figures, store = outcome.manifest, outcome.figures, outcome.store
    if outcome.changes is not None and not outcome.changes.any and not figures.shards:
        say(console, f"nothing is new; {outcome.changes}; the last run is {manifest.run_id}")
        return
    if figures.shards:
        say(console, f"{plural(figures.rows, 'document')} in {figures.seconds:,.1f} s: {figures.line()}")
    else:
        say(console, f"nothing left to do: run {manifest.run_id} was finished before")
    say(
        console,
        f"rows in {manifest.rows_in:,} = out {manifest.rows_ok:,} + errors {manifest.rows_error:,}; "
        f"{manifest.tokens:,} tokens; {manifest.bytes:,} bytes",
    )
    if manifest.not_read:
        say(console, str(manifest.not_read))
    if manifest.rows_lost:
        say(console, lost(manifest.rows_lost, manifest.lost_estimated))
    if outcome.changes is not None:
        say(console, str(outcome.changes))
    if (head := read_head(store, manifest.run_id)) is not None:
        say(console, f"the table has {table_line(head)}; its files: xlmr-ray files {store.url('').rstrip('/')}")
    say(console, f"rows    {store.url(f'data/{manifest.run_id}/')}")
    if manifest.rows_error:
        say(console, f"errors  {store.url(f'errors/{manifest.run_id}/')}")
    if isinstance(store, FsspecStore):
        say(console, "at least once: this store cannot refuse a second writer, so rows may be there twice")
    if not outcome.published:
        reason = "a run of the whole input is" if outcome.limited else "a run that was launched later is"
        say(console, f"not published: {reason}")


def lost(rows: int, estimated: bool) -> str:
    about = "about " if estimated else ""
    return f"{about}{plural(rows, 'more row')} lost with what could not be read" + (
        ", an estimate" if estimated else ""
    )


def ago(seconds: float) -> str:
    return f"{timedelta(seconds=max(0, round(seconds)))} ago"


def print_status(store: Store, console: Console, run_id: str | None = None) -> None:
    """What is published, a line for each run, and more of those that are unfinished, published, or asked for."""
    seen = published(store)
    if seen is not None:
        say(console, published_line(seen))
    runs = list(status(store, run_id))
    if not runs:
        say(console, f"{store.url('')}: no runs")
        return
    finished = [one for one in runs if one.finished]
    if len(finished) > MOST_RUNS:
        say(console, f"{len(finished) - MOST_RUNS:,} earlier runs are not shown; --json has all")
    runs = [*finished[-MOST_RUNS:], *(one for one in runs if not one.finished)]
    table = Table("run", "shards", "rows", "errors", "tokens", "state", "last commit", box=None, pad_edge=False)
    for one in runs:
        table.add_row(
            one.run_id,
            f"{one.done:,}/" + ("?" if one.planned is None else f"{one.planned:,}"),
            f"{one.rows_done - one.rows_error:,}",
            f"{one.rows_error:,}" + ("" if one.all_errors or one.finished else "+"),
            "" if one.tokens is None else f"{one.tokens:,}",
            state(one),
            "" if one.last_commit is None else ago(time.time() - one.last_commit),
        )
    console.print(table, highlight=False)
    for one in runs:
        for line in more(one):
            say(console, f"run {one.run_id}: {line}")
        drift = read_drift(store, one.run_id) if one.published or not one.finished or run_id else None
        if drift is not None and drift.largest is not None:
            say(console, f"run {one.run_id}: largest change since run {drift.after}: {drift.largest}")


def status_lines(store: Store, run_id: str | None = None) -> Iterator[str]:
    """Each run as a JSON object."""
    for one in status(store, run_id):
        drift = read_drift(store, one.run_id)
        largest = None if drift is None or drift.largest is None else asdict(drift.largest)
        content = {**asdict(one), "seconds_left": one.seconds_left, "drift": largest}
        yield json.dumps(content, ensure_ascii=False)


def published_line(seen: Published) -> str:
    """What readers see, in a line."""
    now, head = seen.current, seen.table
    since = ago(time.time() - now.published)
    if head is None:
        return f"published: run {now.run_id}, {since}"
    return f"published: one table, the last run {now.run_id}, {since}: {table_line(head)}"


def table_line(head: Head) -> str:
    """A table in a line."""
    return f"{head.inputs:,} inputs by {len(head.runs):,} runs, rows {head.rows_ok:,} + errors {head.rows_error:,}"


def state(one: RunStatus) -> str:
    if one.published:
        return "published"
    return "in the table" if one.in_table else "finished" if one.finished else "unfinished"


def more(one: RunStatus) -> Sequence[str]:
    """Who drives, how fast, until when; errors by code; files that were not read."""
    lines = []
    if not one.finished:
        lines.append(f"driven by {one.driver}" if one.driver else "nobody drives it; launch the job to go on")
    if one.rate:
        left = one.seconds_left
        end = "" if left is None or not one.driver else f", {timedelta(seconds=round(left))} left"
        lines.append(f"{one.rate:,.1f} rows/s over the {RECENT / 60:.0f} minutes before its last commit{end}")
    if one.errors:
        some = "" if one.all_errors else f"of {sum(one.errors.values()):,} errors looked at: "
        lines.append("errors: " + some + ", ".join(f"{count:,} {code}" for code, count in one.errors.items()))
    if one.not_read:
        lines.append(str(one.not_read))
    if one.rows_lost:
        lines.append(lost(one.rows_lost, one.lost_estimated))
    if one.dead:
        rest = f" and {len(one.dead) - 3:,} more" if len(one.dead) > 3 else ""
        lines.append("files not read: " + ", ".join(f"{key} ({code})" for key, code in one.dead[:3]) + rest)
    return lines


def print_report(report: Report, console: Console) -> None:
    for problem in report.problems:
        say(console, problem)
    say(
        console,
        f"run {report.run_id}: {plural(report.shards, 'shard')}, {plural(report.files, 'file')}, "
        f"{report.bytes:,} bytes, rows in {report.rows_in:,} = out {report.rows_ok:,} + errors {report.rows_error:,}, "
        f"{plural(report.orphans, 'file')} of other attempts: {'verified' if report.ok else 'NOT in order'}",
    )
