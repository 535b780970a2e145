"""Progress on a terminal, in a log, and none when quiet."""

import io

import pytest
from rich.console import Console

from xlmr_ray.text import progress_line
from xlmr_ray.text.progress_line import ProgressLine


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool, seconds: list[float]) -> str:
    """What is printed of a step at each of these seconds."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with ProgressLine(console, "steps", quiet=quiet) as line:
        line.say("it begins")
        for step, second in enumerate(seconds, 1):
            monkeypatch.setattr(progress_line.time, "monotonic", lambda second=second: second)
            line.show(step, 40, f"loss {step / 2}", 1234.0)
    return console.file.getvalue()


def test_a_log_has_a_line_every_ten_seconds(monkeypatch):
    said = shown(monkeypatch, terminal=False, quiet=False, seconds=[5, 6, 14.9, 15, 16, 25])
    assert said.splitlines() == [
        "it begins",
        "1/40 steps · loss 0.5 · 1,234 s left",
        "4/40 steps · loss 2.0 · 1,234 s left",
        "6/40 steps · loss 3.0 · 1,234 s left",
    ]


def test_a_terminal_has_one_line_that_goes(monkeypatch):
    said = shown(monkeypatch, terminal=True, quiet=False, seconds=[5])
    assert "it begins" in said
    assert "1/40 steps" in said
    assert "s left" not in said
    assert said.rstrip("\n").endswith("\x1b[2K")  # wiped at the end


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_when_quiet(monkeypatch, terminal):
    assert shown(monkeypatch, terminal=terminal, quiet=True, seconds=[5, 50]) == ""
