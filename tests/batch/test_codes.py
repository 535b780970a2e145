"""The codes as the documentation lists them."""

import re
from pathlib import Path

import pytest

from xlmr_ray.batch.codes import CATALOGUE
from xlmr_ray.tasks import unfit

PAGE = (Path(__file__).parents[2] / "docs" / "error-rows.md").read_text("utf-8")


@pytest.mark.parametrize(("level", "heading"), [("row", "Of a row"), ("file", "Of a file")])
def test_the_page_lists_every_code_with_its_meaning(level, heading):
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert listed == [(code.name, code.meaning) for code in CATALOGUE.values() if code.level == level]


def test_what_tasks_say_is_in_the_catalogue():
    assert {unfit.NO_MASK, unfit.WRONG_CHOICES} <= CATALOGUE.keys()
    assert all(code.name == name for name, code in CATALOGUE.items())
