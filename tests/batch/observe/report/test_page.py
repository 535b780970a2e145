"""The page: all there, harmless whatever the names are, and readable in light, dark, small and on paper."""

import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.batch.observe.report.reports import HOSTILE, RUN, hostile_run, plain_run
from tests.batch.runs import commit, plan
from tests.chromium import looks, needs_chromium, running_chromium
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.observe.report.leave import save_report
from xlmr_ray.batch.observe.report.page import report_page
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.report_page import plots


class Elements(HTMLParser):
    """All elements with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a plain and of a hostile run, as files."""
    found = {}
    for name, run in (("plain", plain_run), ("hostile", hostile_run)):
        folder = tmp_path_factory.mktemp(name)
        store = open_store(str(folder / "out"))
        run(store)
        found[name] = Path(save_report(store, None, folder))
    return found


@pytest.fixture(scope="module")
def browser():
    with running_chromium() as driver:
        yield driver


def test_what_is_asked_for_is_on_the_page(pages):
    text = " ".join("".join(Elements(pages["plain"].read_text("utf-8")).text).split())
    for part in (
        f"Run {RUN}: published, 6 shards of 6 files",
        "Documents a second", "Tokens a second", "Documents by length", "label by lang", "日本語", "none of these",
        "malformed_json", "in/3, row 503", "EUR", "embedded:mini", "abababababababab", "H100", "2.60.0", "0.1.0",
        "price_per_hour: 3.6",
    ):  # fmt: skip
        assert part in text, part


def test_one_of_a_thing_is_one(tmp_path):
    store = open_store(str(tmp_path / "out"))
    shards = plan(store, 1, identity={"tasks": []})
    commit(store, shards[0], ok=1, bad=1)
    finish(store, RUN, shards)
    publish(store, RUN)
    text = " ".join("".join(Elements(report_page(gather_report(store))).text).split())
    assert f"Run {RUN}: published, 1 shard of 1 file" in text
    assert "1 row and 1 error" in text
    assert "1 code" in text
    assert not re.search(r"\b1 (shards|files|rows|errors|codes)\b", text)


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_the_page_asks_for_nothing_and_runs_nothing(pages, name):
    text = pages[name].read_text("utf-8")
    elements = Elements(text)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "image"}
    for tag, attributes in elements.found:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("href", "xlink:href", "src", "action"):
                assert value.startswith("#") or value == "data:,", (tag, key, value)
            assert not re.search(r"url\((?!#)", value or ""), (tag, key, value)
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(text) < 1 << 20


def test_hostile_names_are_there_as_text(pages):
    text = "".join(Elements(pages["hostile"].read_text("utf-8")).text)
    for name in HOSTILE:
        assert name in text


def test_every_plot_names_itself_and_has_its_figures_beside_it(pages):
    text = pages["plain"].read_text("utf-8")
    plotted = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(plotted) >= 6
    for one in plotted:
        root = xml.etree.ElementTree.fromstring(one)  # well-formed by itself
        assert root.get("role") == "img"
        assert root[0].tag.endswith("title")
        assert root[1].tag.endswith("desc")
        assert root[1].text
    exhibits = text.split('class="exhibit')[1:]
    assert all("<table>" in exhibit or "<pre" in exhibit for exhibit in exhibits)
    # Ids in a page are one element's.
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", [*HOSTILE, "$", "\\", "a" * 300, "", "\x00\x1b[0m", "שלום 日本 ไทย"])
def test_any_text_can_be_a_label_of_a_plot(name):
    for plot in (
        plots.bars([plots.Bar(name, 1, "1")], label=name, title=name or "t"),
        plots.heatmap([name, "b"], [name, "c"], [[1.0, 0.0], [0.2, 0.8]], down=name, title=name or "t"),
        plots.histogram([(0.0, 0.0, 3), (1.0, 2.0, 4)], log=True, label=name, title=name or "t"),
        plots.curves(
            [plots.Curve(name, [(0, 1), (2, 0.5)]), plots.Curve("b", [(1, 1)])], across=name, up="u", title="t"
        ),
    ):
        assert {tag for tag, _ in Elements(plot).found} <= {
            "svg",
            "title",
            "desc",
            "g",
            "path",
            "text",
            "defs",
            "use",
            "clippath",
            "rect",
        }


def test_the_same_report_gives_the_same_page(tmp_path):
    store = open_store(str(tmp_path / "out"))
    plain_run(store, shards=2)
    report = gather_report(store)
    assert report_page(report) == report_page(report)


@needs_chromium
def test_nothing_hostile_runs_in_a_browser(browser, pages):
    browser.get(pages["hostile"].as_uri())
    assert browser.title != "owned"
    assert "owned" not in browser.title.split()
    assert browser.execute_script("return document.querySelectorAll('script, img').length") == 0
    requests = [entry for entry in browser.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]]
    assert all("file://" in entry["message"] or "data:" in entry["message"] for entry in requests)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, False), (1280, True)])
def test_it_fits_its_window_and_can_be_read(browser, pages, width, dark):
    looks(browser, width=width, dark=dark)
    browser.get(pages["plain"].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for element, least in (("text", 4.5), ("td", 4.5), ("h1", 7), (".note", 4.5), ("summary", 4.5), ("dt", 4.5)):
        assert contrast(browser, element) >= least, element
    # Letters in a plot are drawn at a size that people read.
    smallest = browser.execute_script(
        """
        const shown = t => {
            const svg = t.ownerSVGElement, wide = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            return parseFloat(getComputedStyle(t).fontSize) * wide;
        };
        return Math.min(...[...document.querySelectorAll("svg text")].map(shown));
        """
    )
    assert smallest >= 7


def contrast(browser, element):
    """The WCAG contrast of the first such element's letters and what is behind them."""
    colours = browser.execute_script(
        """
        const e = document.querySelector(arguments[0]), s = getComputedStyle(e);
        let b = e;
        while (b && /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;
        return [e.ownerSVGElement ? s.fill : s.color, getComputedStyle(b).backgroundColor];
        """,
        element,
    )
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@needs_chromium
def test_figures_open_by_keyboard(browser, pages):
    looks(browser)
    browser.get(pages["plain"].as_uri())
    details = browser.find_element(By.CSS_SELECTOR, "details")
    assert details.get_attribute("open") is None
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.tag_name == "summary"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None
    assert details.find_element(By.TAG_NAME, "table").is_displayed()


@needs_chromium
def test_it_prints_in_dark_on_light(browser, pages):
    looks(browser, dark=True, media="print")
    browser.get(pages["plain"].as_uri())
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 10_000
