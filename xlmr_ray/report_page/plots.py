"""The report's plots as SVG, in the page's own colours and letters, so that they follow light and dark.

Written here and not by a plotting library: to import matplotlib and draw with it was a quarter of what a short run's
driver computed.
A label may be any text in any script; it is escaped, and shortened to the room that there is.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 317.0  # units, which are pixels on a phone: letters stay readable there
SIZE, SMALL = 9.5, 8.5  # of letters
MARGIN, LINE = 4.0, 13.0  # around everything; from one line of letters to the next
LONGEST = 24  # characters of a label beside a bar
LABELS = 130.0  # units for the labels beside bars at most


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


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` to units of the picture from `start` to `end`; by their logarithms if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log2(self.low), math.log2(self.high)) if self.log else (self.low, self.high)
        share = ((math.log2(value) if self.log else value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """Round values, about so many at `most`: powers of two, or multiples of 1, 2 or 5 times a power of ten."""
        if self.log:
            first, last = math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))
            return [2.0**power for power in range(first, last + 1, max(1, -(-(last - first + 1) // most)))]
        rough = (self.high - self.low) / most or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
        step = max(1.0, step) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * count for count in range(first, last + 1)]


def curves(given: Sequence[Curve], *, across: str, up: str, title: str, unit: bool = False) -> Markup:
    """One or two lines, each with its name; on a `unit` square from 0 to 1."""
    points = [one for line in given for one in finite(line.points)] or [(0.0, 0.0)]
    (left, right), (low, high) = (spread(values) for values in zip(*points, strict=True))
    if unit:
        left, right, low, high = 0.0, 1.0, 0.0, 1.0
    top = LINE * (2 if len(given) > 1 else 1)
    height = 245.0 if unit else 173.0
    x, y = axes(left, right, low, high, top, height)
    drawn = [grid(x, y, across, up, down=True)]
    for line, colour in zip(given, ("first", "second"), strict=False):
        places = [(x.at(a), y.at(b)) for a, b in finite(line.points)]
        drawn.append(path(places, f"fill:none;stroke:var(--{colour});stroke-width:1.8;stroke-linejoin:round"))
        if len(places) == 1 or unit == (colour == "first"):
            dots = "".join(f"M{a - 2:.1f} {b:.1f}a2 2 0 1 0 4 0a2 2 0 1 0-4 0" for a, b in places)
            drawn.append(Markup('<path d="{}" style="fill:var(--{})"/>').format(dots, colour))
    if len(given) > 1:
        place = x.start
        for line, colour in zip(given, ("first", "second"), strict=False):
            name = short_label(line.name)
            drawn.append(path([(place, LINE - 3), (place + 14, LINE - 3)], f"stroke:var(--{colour});stroke-width:1.8"))
            drawn.append(text(place + 18, LINE, name, size=SMALL, colour="ink"))
            place += 34 + width_of(name, SMALL)
    ends = "; ".join(
        f"{short_label(line.name)} from {short_number(line.points[0][1])} to {short_number(line.points[-1][1])}"
        for line in given
    )
    return svg(drawn, height, title, f"{up} by {across}: {ends}.")


def timeline(starts: Sequence[float], width: float, values: Sequence[float], *, unit: str, title: str) -> Markup:
    """Rates over the time at work: `values` of `unit` a second in stretches of `width` seconds."""
    scale, name = (3600.0, "hours") if width * len(starts) > 7200 else (60.0, "minutes")
    if width * len(starts) < 180:
        scale, name = 1.0, "seconds"
    edges = [start / scale for start in (*starts, starts[-1] + width)]
    height = 151.0
    x, y = axes(0.0, edges[-1], 0.0, max(*values, 1e-9) * 1.08, LINE, height)
    steps = [
        place
        for value, start, end in zip(values, edges, edges[1:], strict=False)
        for place in ((x.at(start), y.at(value)), (x.at(end), y.at(value)))
    ]
    closed = [(steps[0][0], y.start), *steps, (steps[-1][0], y.start)]
    drawn = [
        grid(x, y, f"{name} at work", f"{unit}/s"),
        path(closed, "fill:var(--first);fill-opacity:.25;stroke:none"),
        path(steps, "fill:none;stroke:var(--first);stroke-width:1.8"),
    ]
    about = f"{unit} a second over {edges[-1]:.3g} {name}; at most {short_number(max(values))}."
    return svg(drawn, height, title, about)


def histogram(bins: Sequence[tuple[float, float, int]], *, log: bool, label: str, title: str) -> Markup:
    """Counts of numbers by their bins `(from, to, count)`."""
    sides = [(low, low + ((high - low) or 0.02 * max(high, 1.0)), count) for low, high, count in bins]
    height = 151.0
    left, right = sides[0][0], max(high for _, high, _ in sides)
    most = max(count for _, _, count in sides)
    x, y = axes(left, right, 0.0, max(1, most) * 1.05, LINE, height, log=log and left > 0)
    drawn = [grid(x, y, label, "documents", whole=True)]
    drawn += [box(x.at(low), y.at(count), x.at(high), y.start) for low, high, count in sides if count]
    total, most_near = sum(count for _, _, count in bins), max(bins, key=lambda bin: bin[2])[0]
    about = f"{total:,} values from {short_number(left)} to {short_number(bins[-1][1])}; "
    return svg(drawn, height, title, f"{about}most are near {short_number(most_near)}.")


def bars(given: Sequence[Bar], *, label: str, title: str) -> Markup:
    """Horizontal bars, the first one on top, each with its number at its end."""
    names = [fitting(short_label(bar.name), LABELS) for bar in given]
    left = MARGIN + max(width_of(name, SIZE) for name in names) + 5
    right = WIDTH - MARGIN - max(width_of(bar.text, SMALL) for bar in given) - 5
    bottom = MARGIN + 17.0 * len(given) + 2
    height = bottom + 2 * LINE + MARGIN
    x = Axis(0.0, max(*(bar.value for bar in given), 1e-9), left, right)
    drawn = [upright(x, MARGIN, bottom), across_below(x, bottom, label)]
    for row, (bar, name) in enumerate(zip(given, names, strict=True)):
        middle = MARGIN + 17.0 * (row + 0.5)
        drawn.append(text(left - 4, middle + 3, name, colour="ink", anchor="end"))
        drawn.append(box(left, middle - 6, x.at(bar.value), middle + 6))
        drawn.append(text(x.at(bar.value) + 4, middle + 3, bar.text, size=SMALL))
    longest = "; ".join(f"{short_label(bar.name)} {bar.text}" for bar in given[:5])
    return svg(drawn, height, title, f"{len(given)} bars, the longest: {longest}.")


def heatmap(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], *, down: str, title: str
) -> Markup:
    """Shares from 0 to 1 of each column in each row, the darker the more; a cell without any is left empty."""
    names = [fitting(short_label(name), LABELS, SMALL) for name in rows]
    heads = [fitting(short_label(name, 16), LABELS, SMALL) for name in columns]
    turned = max(map(len, columns)) > 3 or len(columns) > 26
    left = MARGIN + LINE + max(width_of(name, SMALL) for name in names) + 5
    top = MARGIN + (max(width_of(name, SMALL) for name in heads) if turned else SMALL) + 4
    high, wide = 14.4, (WIDTH - MARGIN - left) / len(columns)
    bottom = top + high * len(rows)
    height = bottom + MARGIN
    drawn = [text(MARGIN + SIZE, height / 2, fitting(down, height - 2 * MARGIN), anchor="middle", turned=True)]
    for y, name in enumerate(names):
        drawn.append(text(left - 4, top + high * (y + 0.5) + 3, name, size=SMALL, colour="ink", anchor="end"))
    for x, name in enumerate(heads):
        middle = left + wide * (x + 0.5)
        place = (middle + 3, top - 3) if turned else (middle, top - 3)
        anchor = "start" if turned else "middle"
        drawn.append(text(*place, name, size=SMALL, colour="ink", anchor=anchor, turned=turned))
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            if share > 0:
                a, b = left + wide * x, top + high * y
                drawn.append(box(a, b, a + wide, b + high, 0.12 + 0.88 * share))
    return svg(drawn, height, title, f"{len(rows)} rows of {down}, {len(columns)} columns.")


def axes(
    left: float, right: float, low: float, high: float, top: float, height: float, *, log: bool = False
) -> tuple[Axis, Axis]:
    """The axes of a picture so high, with room for their labels, and for the last number over its end."""
    up = Axis(low, high, height - 2 * LINE - MARGIN - 4, top)
    widest = max((width_of(short_number(tick), SIZE) for tick in up.ticks(5)), default=0.0)
    return Axis(left, right, MARGIN + LINE + widest + 6, WIDTH - 14, log), up


def grid(x: Axis, y: Axis, across: str, up: str, *, down: bool = False, whole: bool = False) -> Markup:
    """Lines at the round values of `y`, and of `x` if `down`, with their numbers, and both axes' names."""
    parts = [upright(x, y.end, y.start)] if down else []
    for tick in y.ticks(5, whole=whole):
        parts.append(path([(x.start, y.at(tick)), (x.end, y.at(tick))], "stroke:var(--line);stroke-width:.8"))
        parts.append(text(x.start - 5, y.at(tick) + 3, short_number(tick), anchor="end"))
    middle = (y.start + y.end) / 2
    parts.append(text(MARGIN + SIZE, middle, fitting(up, y.start - y.end + LINE), anchor="middle", turned=True))
    return Markup("").join([*parts, across_below(x, y.start, across)])


def upright(x: Axis, top: float, bottom: float) -> Markup:
    style = "stroke:var(--line);stroke-width:.8"
    return Markup("").join(path([(x.at(tick), top), (x.at(tick), bottom)], style) for tick in x.ticks(5))


def across_below(x: Axis, bottom: float, label: str) -> Markup:
    """The line below, with the numbers and the name of the axis."""
    parts = [path([(x.start, bottom), (x.end, bottom)], "stroke:var(--line);stroke-width:.8")]
    parts += [text(x.at(tick), bottom + LINE, short_number(tick), anchor="middle") for tick in x.ticks(5)]
    name = fitting(label, WIDTH - 2 * MARGIN)
    return Markup("").join([*parts, text((x.start + x.end) / 2, bottom + 2 * LINE, name, anchor="middle")])


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = SIZE,
    colour: str = "soft",
    anchor: str = "start",
    turned: bool = False,
) -> Markup:
    """A line of letters, `turned` a quarter to the left."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    style = f"font-size:{size}px;fill:var(--{colour});text-anchor:{anchor}"
    return Markup(f'<text x="{x:.1f}" y="{y:.1f}"{turn} style="{style}">{{}}</text>').format(content)


def box(left: float, top: float, right: float, bottom: float, strength: float = 1.0) -> Markup:
    weak = f";fill-opacity:{strength:.3g}" if strength < 1 else ""
    size = f'width="{max(0.0, right - left):.1f}" height="{max(0.0, bottom - top):.1f}"'
    return Markup(f'<rect x="{left:.1f}" y="{top:.1f}" {size} style="fill:var(--first){weak}"/>')


def path(points: Iterable[tuple[float, float]], style: str) -> Markup:
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup(f'<path d="M{line}" style="{style}"/>') if line else Markup("")


def svg(drawn: Iterable[Markup], height: float, title: str, description: str) -> Markup:
    """An SVG element that names and describes itself."""
    head = f'<svg viewBox="0 0 {WIDTH:g} {height:.1f}" role="img" xmlns="http://www.w3.org/2000/svg">'
    named = Markup("<title>{}</title><desc>{}</desc>").format(without_controls(title), without_controls(description))
    return Markup(head) + named + Markup("").join(drawn) + Markup("</svg>")


def finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def spread(values: Iterable[float]) -> tuple[float, float]:
    """From the least to the largest, and a twentieth more on either side."""
    values = list(values)
    low, high = min(values), max(values)
    more = (high - low) / 20 or abs(low) / 20 or 0.5
    return low - more, high + more


def width_of(label: str, size: float) -> float:
    """About how wide letters are: those of East Asian scripts as wide as high, marks on others nothing."""
    wide = sum(1.0 if unicodedata.east_asian_width(one) in "WF" else 0.6 for one in label)
    return size * (wide - 0.6 * sum(1 for one in label if unicodedata.combining(one)))


def fitting(label: str, room: float, size: float = SIZE) -> str:
    """A label cut to so many units."""
    label = without_controls(label)
    if width_of(label, size) <= room:
        return label
    while label and width_of(label, size) > room - size:
        label = label[:-1]
    return label + "…"


def without_controls(label: str) -> str:
    """Without control characters, which no XML may have."""
    return "".join("\ufffd" if unicodedata.category(one) in ("Cc", "Cs") else one for one in label)


def short_label(label: str, most: int = LONGEST) -> str:
    """A label as long as there is room for."""
    label = without_controls(" ".join(label.split()))
    return label if len(label) <= most else label[: most - 1] + "…"


def short_number(value: float) -> str:
    """A number in few characters: 1.2k, 3.4M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
