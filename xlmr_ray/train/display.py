"""How a training goes, for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from xlmr_ray.text.progress_line import ProgressLine, say
from xlmr_ray.train.state import Progress
from xlmr_ray.train.steps import TrainSteps

SMOOTHED = 20  # steps whose mean loss is shown


def show_step(line: ProgressLine, done: Progress, steps: TrainSteps) -> None:
    """After a step: what was measured, if its epoch is at the end, and how far it is."""
    if done.history and done.history[-1]["step"] == done.step and (found := measures_in_words(done.history[-1])):
        line.say(f"epoch {done.history[-1]['epoch']}: {' · '.join(found)}")
    recent = done.losses[-SMOOTHED:]
    rate = done.step / max(done.seconds, 1e-9)
    text = f"loss {sum(recent) / len(recent):.4f} · {rate:.2f} steps/s · epoch {steps.epoch(done.step - 1) + 1}"
    line.show(done.step, steps.count, text, (steps.count - done.step) / max(rate, 1e-9))


def measures_in_words(found: Mapping[str, Any]) -> list[str]:
    """What was measured after an epoch, for people."""
    return [f"{name} {value:.4f}" for name, value in found.items() if name not in ("step", "epoch")]


def print_train_summary(folder: Path, done: Progress | None, console: Console) -> None:
    """What the command prints at its end; `done` is None where another call had finished."""
    if done is None:
        lines = [f"nothing left to do: {folder} was finished before"]
    else:
        best = done.history[-1 if done.best is None else done.best]
        lines = [f"{done.step:,} steps in {done.seconds:,.1f} s, loss {done.losses[-1]:.4f}"]
        if found := measures_in_words(best):
            lines.append(f"validation after epoch {best['epoch']}: {', '.join(found)}")
        lines.append(f"checkpoint  {folder}")
    for line in lines:
        say(console, line)
