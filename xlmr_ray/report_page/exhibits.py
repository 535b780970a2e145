"""What a page shows, and the page around it.

Names of labels, files, columns and jobs are whatever somebody wrote: jinja2 escapes them all, and the page's own policy
forbids scripts and requests.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup


@dataclass(frozen=True)
class Card:
    """A figure to see first."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class PageTable:
    """Cells as text; those of `numbers`, by index, are set flush right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]


@dataclass(frozen=True)
class Exhibit:
    """A plot, if there is one, and the figures behind it, which are folded away then."""

    title: str
    plot: Markup | None
    table: PageTable
    note: str = ""


@dataclass(frozen=True)
class PageSection:
    title: str
    exhibits: tuple[Exhibit, ...]


def page_environment(folder: Path) -> jinja2.Environment:
    """For templates in a folder that extend `page.html.jinja`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_yaml(job: Mapping[str, Any] | None) -> str:
    """A job as its file has it."""
    return yaml.safe_dump(dict(job), sort_keys=False, allow_unicode=True) if job else ""


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else "—"
