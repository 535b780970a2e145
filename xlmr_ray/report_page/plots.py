"""The report's plots: matplotlib's SVG, in the page's own colours and letters, so that it follows light and dark.

Colours are placeholders that become CSS variables; letters stay letters, in the page's font. No mathematics is parsed
in labels and no font is looked for: a label may be any text in any script.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH = 4.4  # inches of 72 points: as wide as a phone, so that the letters stay readable there
PALETTE = {"#010101": "ink", "#020202": "soft", "#030303": "line", "#040404": "first", "#050505": "second"}
INK, SOFT, LINE, FIRST, SECOND = PALETTE
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
LONGEST = 24  # characters of a label beside a bar


@dataclass(frozen=True)
class Bar:
    """One bar: what it is of, how much, and that as text."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One line: what it is of, and its points."""

    name: str
    points: Sequence[tuple[float, float]]


def curves(given: Sequence[Curve], *, across: str, up: str, title: str, unit: bool = False) -> Markup:
    """One or two lines, each with its name; on a `unit` square from 0 to 1."""

    def draw(axes: Axes) -> None:
        for line, colour, marker in zip(given, (FIRST, SECOND), (None, "o"), strict=False):
            own = list(zip(*line.points, strict=True))
            single = "o" if len(line.points) == 1 or (unit and colour == FIRST) else marker
            axes.plot(
                *own, color=colour, linewidth=1.8, marker=None if unit and colour == SECOND else single, markersize=4
            )
            axes.plot([], [], color=colour, label=short_label(line.name))
        if len(given) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)
        if unit:
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlabel(across)
        axes.set_ylabel(up)

    ends = "; ".join(
        f"{short_label(line.name)} from {short_number(line.points[0][1])} to {short_number(line.points[-1][1])}"
        for line in given
    )
    return svg(draw, 3.4 if unit else 2.4, title, f"{up} by {across}: {ends}.")


def timeline(starts: Sequence[float], width: float, values: Sequence[float], *, unit: str, title: str) -> Markup:
    """Rates over the time at work: `values` of `unit` a second in stretches of `width` seconds."""
    scale, name = (3600.0, "hours") if width * len(starts) > 7200 else (60.0, "minutes")
    if width * len(starts) < 180:
        scale, name = 1.0, "seconds"
    edges = [start / scale for start in (*starts, starts[-1] + width)]

    def draw(axes: Axes) -> None:
        axes.stairs(values, edges, fill=True, color=FIRST, alpha=0.25)
        axes.stairs(values, edges, color=FIRST, linewidth=1.8)
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(0, max(*values, 1e-9) * 1.08)
        axes.set_xlabel(f"{name} at work")
        axes.set_ylabel(f"{unit}/s")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.grid(visible=False, axis="x")

    return svg(draw, 2.1, title, f"{unit} a second over {edges[-1]:.3g} {name}; at most {short_number(max(values))}.")


def histogram(bins: Sequence[tuple[float, float, int]], *, log: bool, label: str, title: str) -> Markup:
    """Counts of numbers by their bins `(from, to, count)`."""

    def draw(axes: Axes) -> None:
        left = [low for low, _, _ in bins]
        widths = [(high - low) or 0.02 * max(high, 1.0) for low, high, _ in bins]
        axes.bar(left, [count for _, _, count in bins], widths, align="edge", color=FIRST, linewidth=0)
        if log and left[0] > 0:
            axes.set_xscale("log", base=2)
            axes.set_xlim(min(left), max(low + wide for low, wide in zip(left, widths, strict=True)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlabel(label)
        axes.set_ylabel("documents")
        axes.grid(visible=False, axis="x")

    total = sum(count for _, _, count in bins)
    most = max(bins, key=lambda bin: bin[2])
    low, high, most_near = short_number(bins[0][0]), short_number(bins[-1][1]), short_number(most[0])
    text = f"{total:,} values from {low} to {high}; most are near {most_near}."
    return svg(draw, 2.1, title, text)


def bars(given: Sequence[Bar], *, label: str, title: str) -> Markup:
    """Horizontal bars, the first one on top, each with its number at its end."""

    def draw(axes: Axes) -> None:
        positions = range(len(given))
        axes.barh(positions, [bar.value for bar in given], 0.72, color=FIRST, linewidth=0)
        axes.set_yticks(positions, [short_label(bar.name) for bar in given], color=INK)
        axes.set_ylim(len(given) - 0.5, -0.5)
        axes.set_xlim(0, max(*(bar.value for bar in given), 1e-9) * 1.16)
        for position, bar in enumerate(given):
            axes.annotate(
                bar.text,
                (bar.value, position),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=SOFT,
                fontsize=8.5,
            )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        axes.grid(visible=False, axis="y")

    longest = "; ".join(f"{short_label(bar.name)} {bar.text}" for bar in given[:5])
    return svg(draw, 0.65 + 0.235 * len(given), title, f"{len(given)} bars, the longest: {longest}.")


def heatmap(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], *, down: str, title: str
) -> Markup:
    """Shares from 0 to 1 of each column in each row, the darker the more; a cell without any is left empty."""

    def draw(axes: Axes) -> None:
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share > 0:
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (x - 0.5, y - 0.5), 1, 1, facecolor=FIRST, alpha=0.12 + 0.88 * share, linewidth=0
                        )
                    )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [short_label(name) for name in rows], color=INK)
        turned = 90 if max(map(len, columns)) > 3 or len(columns) > 26 else 0
        axes.set_xticks(range(len(columns)), [short_label(name, 16) for name in columns], rotation=turned, color=INK)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=8)
        axes.set_ylabel(down)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return svg(draw, 0.8 + 0.2 * len(rows), title, f"{len(rows)} rows of {down}, {len(columns)} columns.")


def svg(draw: Any, height: float, title: str, description: str) -> Markup:
    """What `draw` draws on axes, as an SVG element that names and describes itself."""
    style: Any = {**STYLE, "svg.hashsalt": title}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font which measures them has not
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return page_svg(file.getvalue(), title, description)


def page_svg(text: str, title: str, description: str) -> Markup:
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # and these are in every plot
    text = re.sub(r'style="[^"]*"', lambda found: themed(found[0]), text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} role="img" xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'
    named = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head + named, text, count=1))  # matplotlib escapes what it is given


def themed(style: str) -> str:
    """A style with the page's colours, and its font: of letters only the size is kept."""
    for colour, name in PALETTE.items():
        style = style.replace(colour, f"var(--{name})")
    style = re.sub(r"font-family: [^;]*; ", "", style)
    return re.sub(r"font: (?:\w+ )*([\d.]+)px [^;]*", r"font-size: \1px", style)


def short_label(text: str, most: int = LONGEST) -> str:
    """A label as long as there is room for."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def short_number(value: float) -> str:
    """A number in few characters: 1.2k, 3.4M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
