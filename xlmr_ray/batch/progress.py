"""How a run goes, for people: a live line on a terminal, plain lines elsewhere."""

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from xlmr_ray.batch.ledger.record import Record

EVERY = 10.0  # seconds between plain lines


def say(console: Console, text: str) -> None:
    """One plain line: no markup, no colours, not broken to the width of the terminal."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class Figures:
    """What was done since the start of this launch; `total` rows and shards are the whole run's, `before` those of
    earlier launches.
    """

    total_rows: int
    total_shards: int
    rows_before: int = 0
    shards_before: int = 0
    errors_before: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    shards: int = 0
    tokens: int = 0
    padded: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, record: Record) -> None:
        """A shard that was committed now; rows that are lost with a file that cannot be read are errors here."""
        self.rows_ok += record.rows_ok
        self.rows_error += record.rows_error + record.rows_lost
        self.tokens += record.stats.tokens
        self.padded += record.stats.padded
        self.shards += 1

    @property
    def rows(self) -> int:
        return self.rows_ok + self.rows_error

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def line(self) -> str:
        seconds = max(self.seconds, 1e-9)
        padding = self.padded / max(1, self.tokens + self.padded)
        return (
            f"{self.rows / seconds:,.1f} docs/s · {self.tokens / seconds:,.0f} tokens/s · padding {padding:.1%} · "
            f"shards {self.shards_before + self.shards:,}/{self.total_shards:,} · errors {self.rows_error:,}"
        )


class Display:
    """Shows figures until it is left. Not shown at all when `quiet`."""

    def __init__(self, figures: Figures, console: Console, *, quiet: bool = False) -> None:
        self.figures, self.console, self.quiet = figures, console, quiet
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.last = time.monotonic()

    def __enter__(self) -> "Display":
        if not self.quiet and self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} docs"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.live.add_task(
                "", total=self.figures.total_rows, completed=self.figures.rows_before, line=""
            )
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def note(self, text: str) -> None:
        """Something to say before there are figures."""
        if self.live is not None and self.task is not None:
            self.live.update(self.task, line=text)
        elif not self.quiet:
            say(self.console, text)

    def update(self) -> None:
        """Shows the figures as they are now."""
        figures = self.figures
        done = figures.rows_before + figures.rows
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=done, line=figures.line())
        elif not self.quiet and (time.monotonic() - self.last >= EVERY or figures.shards == 1):
            self.last = time.monotonic()
            left = (figures.total_rows - done) * figures.seconds / max(1, figures.rows)
            say(self.console, f"{done:,}/{figures.total_rows:,} docs · {figures.line()} · {left:,.0f} s left")
