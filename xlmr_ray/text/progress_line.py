"""How far something is, for people: a live line on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between plain lines


def say(console: Console, text: str) -> None:
    """One plain line: no markup, no colours, not broken to the width of the terminal."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProgressLine:
    """Counts a `unit` (docs, steps) until it is left. Nothing at all when `quiet`."""

    def __init__(self, console: Console, unit: str, *, quiet: bool = False) -> None:
        self.console, self.unit, self.quiet = console, unit, quiet
        self.live = Progress(
            TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.last: float | None = None  # when a plain line was printed

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live.tasks:
            self.live.stop()

    def say(self, text: str) -> None:
        """A plain line, above a live one."""
        if not self.quiet:
            say(self.console, text)

    def show(self, done: int, total: int, line: str, left: float) -> None:
        """So many units are done; a `line` of figures; seconds that are `left`. Plain lines come every 10 seconds."""
        if self.quiet:
            return
        if self.console.is_terminal:
            if not self.live.tasks:
                self.live.add_task("", total=total, line=line)
                self.live.start()
            self.live.update(self.live.task_ids[0], completed=done, total=total, line=line)
        elif self.last is None or time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self.say(f"{done:,}/{total:,} {self.unit} · {line} · {left:,.0f} s left")
