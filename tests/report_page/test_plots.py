"""Plots as numbers: what is drawn is as long, high and far along as its value, and nothing leaves the picture."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlmr_ray.report_page import plots

SVG = "{http://www.w3.org/2000/svg}"
sizes = st.floats(1e-6, 1e15)


def drawn(markup):
    """The root, its rectangles (x, y, width, height), and its letters (x, y, text)."""
    root = ElementTree.fromstring(markup)
    boxes = [[float(one.get(key)) for key in ("x", "y", "width", "height")] for one in root.iter(f"{SVG}rect")]
    return root, boxes, [(float(t.get("x")), float(t.get("y")), t.text) for t in root.iter(f"{SVG}text")]


def inside(root):
    _, _, wide, high = map(float, root.get("viewBox").split())
    for one in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(one.get(key)) for key in ("x", "y", "width", "height"))
        assert -0.1 <= x <= x + width <= wide + 0.1
        assert -0.1 <= y <= y + height <= high + 0.1
    lines = [one.get("d")[1:] for one in root.iter(f"{SVG}path") if "a" not in one.get("d")]  # the others are dots
    places = [tuple(map(float, pair.split())) for line in lines for pair in line.split("L")]
    assert all(-0.1 <= x <= wide + 0.1 and -0.1 <= y <= high + 0.1 for x, y in places)
    assert all(0 <= float(t.get("x")) <= wide and 0 <= float(t.get("y")) <= high for t in root.iter(f"{SVG}text"))


@given(st.lists(st.tuples(st.text(max_size=40), sizes), min_size=1, max_size=20))
def test_bars_are_as_long_as_their_values(given):
    root, boxes, _ = drawn(
        plots.bars([plots.Bar(name, value, f"{value:.3g}") for name, value in given], label="n", title="t")
    )
    inside(root)
    most = max(range(len(given)), key=lambda place: given[place][1])
    unit = boxes[most][2] / given[most][1]
    assert unit > 0
    assert [box[2] for box in boxes] == pytest.approx([value * unit for _, value in given], abs=0.11)
    assert [box[1] for box in boxes] == sorted(box[1] for box in boxes)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=30), st.booleans())
def test_a_histogram_is_as_high_as_its_counts(counts, log):
    edges = [2.0**power for power in range(len(counts) + 1)] if log else [0.5 * i for i in range(len(counts) + 1)]
    bins = list(zip(edges, edges[1:], counts, strict=False))
    root, boxes, letters = drawn(plots.histogram(bins, log=log, label="tokens", title="t"))
    inside(root)
    shown = [(n, count) for n, count in enumerate(counts) if count]
    assert len(boxes) == len(shown)
    if shown:
        heights = np.array([box[3] for box in boxes])
        assert heights.max() > 80
        expected = np.array([count for _, count in shown]) * heights.max() / max(counts)
        assert heights == pytest.approx(expected, abs=0.11)
        width = np.array([box[2] for box in boxes])  # powers of two and equal steps are equally wide, each on its scale
        assert width == pytest.approx(np.full(len(width), width[0]), abs=0.21)
    numbers = [(x, float(text)) for x, y, text in letters if re.fullmatch(r"[\d.]+", text or "") and y > 120]
    for x, value in numbers:  # a tick is where a bin that begins there begins
        for n, box in zip((n for n, _ in shown), boxes, strict=True):
            if bins[n][0] == value:
                assert x == pytest.approx(box[0], abs=0.11)


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=30))
def test_a_line_goes_through_its_points(points):
    root, _, _ = drawn(plots.curves([plots.Curve("a", points)], across="x", up="y", title="t"))
    inside(root)
    line = next(one for one in root.iter(f"{SVG}path") if "stroke:var(--first)" in one.get("style"))
    places = np.array([list(map(float, pair.split())) for pair in line.get("d")[1:].split("L")])
    for axis, sign in ((0, 1), (1, -1)):
        values = np.array([point[axis] for point in points]) * sign
        spread, room = np.ptp(values), np.ptp(places[:, axis])
        if spread > 1e-6:
            expected = (values - values.min()) / spread * room
            assert places[:, axis] - places[:, axis].min() == pytest.approx(expected, abs=0.25)


def test_a_line_without_its_numbers_that_are_none():
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.5)]
    plot = plots.curves([plots.Curve("a", points)], across="x", up="y", title="t")
    inside(drawn(plot)[0])
    assert not re.search("nan|inf", plot.split("</desc>")[1])


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40), st.floats(0.1, 1e6))
def test_a_timeline_is_as_high_as_its_rates(values, width):
    starts = [width * n for n in range(len(values))]
    root, _, _ = drawn(plots.timeline(starts, width, values, unit="tokens", title="t"))
    inside(root)
    steps = next(one.get("d") for one in root.iter(f"{SVG}path") if "stroke:var(--first)" in one.get("style"))
    ups = np.array([float(pair.split()[1]) for pair in steps[1:].split("L")])[::2]
    if max(values) > 1e-6:
        top, bottom = min(ups), plots.axes(0, 1, 0, 1, plots.LINE, 151.0)[1].start
        assert bottom - ups == pytest.approx(np.array(values) / max(values) * (bottom - top), abs=0.21)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 3, False, [-2, 0, 2]),
        (0, 12345, False, [0, 5000, 10000]),
        (1, 1024, True, [1, 8, 64, 512]),
        (3, 5, True, [4]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert plots.Axis(low, high, 0, 1, log).ticks(5) == pytest.approx(expected)


def test_counts_have_whole_ticks():
    assert plots.Axis(0, 2, 0, 1).ticks(5, whole=True) == [0, 1, 2]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 8))
def test_there_are_not_too_many_ticks(low, wide, most):
    ticks = plots.Axis(low, low + wide, 0, 1).ticks(most)
    assert len(ticks) <= most + 1
