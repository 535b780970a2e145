"""How a training goes, for people: a live line on a terminal, plain lines elsewhere."""

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from xlmr_ray.train.state import Progress as Done
from xlmr_ray.train.steps import Steps

EVERY = 10.0  # seconds between plain lines
SMOOTHED = 20  # steps whose mean loss is shown


class Display:
    """Shows steps until it is left. Nothing at all when `quiet`."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self.last = time.monotonic()
        self.told = 0

    def __enter__(self) -> "Display":
        if not self.quiet and self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.live.add_task("", total=None, line="")
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """A plain line."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, done: Done, steps: Steps) -> None:
        """After a step."""
        for found in done.history[self.told :]:
            measures = " · ".join(
                f"{name} {value:.4f}" for name, value in found.items() if name not in ("step", "epoch")
            )
            if measures:
                self.say(f"epoch {found['epoch']}: {measures}")
        self.told = len(done.history)
        recent = done.losses[-SMOOTHED:]
        rate = done.step / max(done.seconds, 1e-9)
        line = f"loss {sum(recent) / len(recent):.4f} · {rate:.2f} steps/s · epoch {steps.epoch(done.step - 1) + 1}"
        if self.live is not None and self.task is not None:
            self.live.update(self.task, total=steps.count, completed=done.step, line=line)
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            left = (steps.count - done.step) / max(rate, 1e-9)
            self.say(f"{done.step:,}/{steps.count:,} steps · {line} · {left:,.0f} s left")


def print_summary(folder: Path, done: Done | None, console: Console) -> None:
    """What the command prints at its end; `done` is None where another call had finished."""
    if done is None:
        lines = [f"nothing left to do: {folder} was finished before"]
    else:
        best = done.history[-1 if done.best is None else done.best]
        lines = [f"{done.step:,} steps in {done.seconds:,.1f} s, loss {done.losses[-1]:.4f}"]
        measured = {name: value for name, value in best.items() if name not in ("step", "epoch")}
        if measured:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
            lines.append(f"validation after epoch {best['epoch']}: {figures}")
        lines.append(f"checkpoint  {folder}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
