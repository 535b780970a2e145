"""Durations as people read them."""

import pytest

from xlmr_ray.text.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min"), (273_600.0, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
