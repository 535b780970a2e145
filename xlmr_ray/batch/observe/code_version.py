"""Which code runs."""

from __future__ import annotations

import functools
import subprocess
from importlib.metadata import version
from pathlib import Path


@functools.cache
def code_version() -> str:
    """The package's version, and in a checkout of its sources the commit, `+` where it was changed since."""
    said = version("xlmr-ray")
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return said
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return said
    return f"{said} ({done.stdout.strip()})"
