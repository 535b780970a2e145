"""What a command prints at its end."""

import time
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from xlmr_ray.batch.progress import say
from xlmr_ray.batch.run import Outcome
from xlmr_ray.batch.store import FsspecStore, Store
from xlmr_ray.batch.verify import Report, status


def print_summary(outcome: Outcome, console: Console) -> None:
    manifest, figures, store = outcome.manifest, outcome.figures, outcome.store
    if figures.shards:
        say(console, f"{figures.rows:,} documents in {figures.seconds:,.1f} s: {figures.line()}")
    else:
        say(console, f"nothing left to do: run {manifest.run_id} was finished before")
    say(
        console,
        f"rows in {manifest.rows_in:,} = out {manifest.rows_ok:,} + errors {manifest.rows_error:,}; "
        f"{manifest.tokens:,} tokens; {manifest.bytes:,} bytes",
    )
    say(console, f"rows    {store.url(f'data/{manifest.run_id}/')}")
    if manifest.rows_error:
        say(console, f"errors  {store.url(f'errors/{manifest.run_id}/')}")
    if isinstance(store, FsspecStore):
        say(console, "at least once: this store cannot refuse a second writer, so rows may be there twice")
    if not outcome.published:
        say(console, "not published: a run that was launched later is")


def ago(seconds: float) -> str:
    return f"{timedelta(seconds=max(0, round(seconds)))} ago"


def print_status(store: Store, console: Console) -> None:
    table = Table("run", "shards", "rows", "errors", "tokens", "state", "last commit", box=None, pad_edge=False)
    runs = list(status(store))
    for one in runs:
        planned = "?" if one.planned is None else f"{one.planned:,}"
        state = "published" if one.published else "finished" if one.finished else "unfinished"
        last = "" if one.last_commit is None else ago(time.time() - one.last_commit)
        table.add_row(
            one.run_id,
            f"{one.done:,}/{planned}",
            f"{one.rows_ok:,}",
            f"{one.rows_error:,}",
            f"{one.tokens:,}",
            state,
            last,
        )
    if runs:
        console.print(table, highlight=False)
    else:
        say(console, f"{store.url('')}: no runs")


def print_report(report: Report, console: Console) -> None:
    for problem in report.problems:
        say(console, problem)
    say(
        console,
        f"run {report.run_id}: {report.shards:,} shards, {report.files:,} files, {report.bytes:,} bytes, "
        f"rows in {report.rows_in:,} = out {report.rows_ok:,} + errors {report.rows_error:,}, "
        f"{report.orphans:,} files of other attempts: {'verified' if report.ok else 'NOT in order'}",
    )
