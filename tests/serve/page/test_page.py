"""The page at `/` in a real browser: each task's example asked and its answer shown, by keyboard, in both directions.

With XLMR_RAY_SCREENSHOTS=FOLDER it leaves a picture of each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.chromium import looks, needs_chromium, running_chromium
from tests.extending import SECTIONS, loaded
from tests.serve.server import running
from xlmr_ray.tasks.registry import TASKS

pytestmark = needs_chromium
# A task and what its answer shows.
SHOWN = {
    "text-classification": ".bars tr",
    "token-classification": ".text",
    "fill-mask": ".text mark",
    "question-answering": ".big",
    "zero-shot-classification": ".bars tr:nth-child(3)",
    "multiple-choice": ".bars tr.best",
    "rerank": ".bars tr:nth-child(3)",
    "sentence-similarity": ".bars tr:nth-child(3)",
    "embedding": ".heat tbody tr:nth-child(5) td:last-child",
    "feature-extraction": ".heat tbody td",
    "text-generation": ".text mark",
    "perplexity": ".big",
    "pseudo-perplexity": ".big",
}
SCREENSHOTS = os.environ.get("XLMR_RAY_SCREENSHOTS")  # a folder to leave them in


@pytest.fixture(scope="module")
def browser():
    with running_chromium() as driver:
        looks(driver, width=1000)
        yield driver


def waited(browser, found, seconds=60):
    return WebDriverWait(browser, seconds, ignored_exceptions=[NoSuchElementException]).until(found)


def opened(browser, server, task):
    browser.get("about:blank")
    browser.get(f"{server.url}/#{task}")
    waited(browser, lambda b: "tasks of" in b.find_element(By.ID, "about").text)
    assert Select(browser.find_element(By.ID, "task")).first_selected_option.text.startswith(task)


def asked(browser, field, text):
    """Puts a text into a field and asks."""
    element = browser.find_element(By.ID, field)
    element.clear()
    element.send_keys(text)
    browser.find_element(By.ID, "go").click()


def answered(browser):
    waited(browser, lambda b: b.find_element(By.ID, "status").text.endswith((" ms", " tokens", "length")))
    return browser.find_element(By.ID, "result")


def errors(browser):
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.parametrize("task", SHOWN)
def test_each_task_shows_its_answer(browser, server, task):
    opened(browser, server, task)
    browser.find_element(By.ID, "go").click()
    result = answered(browser)
    assert result.find_element(By.CSS_SELECTOR, SHOWN[task]).text
    curl = browser.find_element(By.ID, "curl").text
    assert curl.startswith(f"curl '{server.url}/tasks/{task}?model=")
    assert not errors(browser)
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(f"{SCREENSHOTS}/{task}.png")


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """A service with a task that the page does not know by name."""
    module = loaded(SECTIONS["A task"][0], tmp_path_factory.mktemp("extending"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "token-count", module.TokenCount)
        with running([{"model": "embedded:mini", "tasks": ["token-count", "passage-embedding"]}]) as server:
            yield server
    del sys.modules[module.__name__]


def test_a_task_that_the_page_does_not_know_by_name(browser, unknown):
    opened(browser, unknown, "token-count")
    asked(browser, "field-text", "Everyone has the right to life.")
    shown = answered(browser).find_element(By.CSS_SELECTOR, ".facts").text
    tokenizer = transformers.AutoTokenizer.from_pretrained(unknown.service.models["mini"].folder)
    expected = len(tokenizer("Everyone has the right to life.")["input_ids"])
    assert shown == f"Answer\ntokens {expected}"
    assert not errors(browser)


def test_a_list_of_answers_with_vectors_of_such_a_task(browser, unknown):
    opened(browser, unknown, "passage-embedding")
    browser.find_element(By.ID, "go").click()
    first, *_ = answered(browser).find_elements(By.CSS_SELECTOR, ".facts")
    assert f"{unknown.service.models['mini'].config.hidden_size} numbers" in first.text
    assert not errors(browser)


LONG = "word " * 600
CUT = {
    "text-classification": ("text", LONG, "; the text was cut to the model's length"),
    "embedding": ("texts", f"short\n{LONG}\n{LONG}", "; texts 2, 3 were cut to the model's length"),
    "rerank": ("documents", f"short\n{LONG}", "; text 2 was cut to the model's length"),
    "sentence-similarity": ("sentences", f"{LONG}\nshort", "; text 1 was cut to the model's length"),
    "feature-extraction": ("text", LONG, "; the text was cut to the model's length"),
}


@pytest.mark.parametrize("task", CUT)
def test_the_page_says_that_a_text_was_cut(browser, server, task):
    opened(browser, server, task)
    name, text, said = CUT[task]
    browser.execute_script("arguments[0].value = arguments[1]", browser.find_element(By.ID, f"field-{name}"), text)
    browser.find_element(By.ID, "go").click()
    answered(browser)
    assert browser.find_element(By.ID, "status").text.endswith(said)


@pytest.mark.parametrize("task", ["perplexity", "pseudo-perplexity"])
def test_the_perplexity_of_a_text_without_tokens(browser, server, task):
    opened(browser, server, task)
    browser.execute_script("arguments[0].value = '\u3000'", browser.find_element(By.ID, "field-text"))
    browser.find_element(By.ID, "go").click()
    shown = answered(browser).find_element(By.CSS_SELECTOR, ".big").text
    # A causal model foretells the token at the end of a text, a masked one only what is not a special token.
    assert shown == "none" if task == "pseudo-perplexity" else float(shown) > 1
    assert not errors(browser)


def test_the_curl_line_gives_the_same_answer(browser, server, tmp_path):
    opened(browser, server, "text-classification")
    asked(browser, "field-text", "It's everyone's right.")
    answered(browser)
    line = browser.find_element(By.ID, "curl").get_attribute("textContent")
    shown = json.loads(browser.find_element(By.ID, "json").get_attribute("textContent"))
    done = subprocess.run(["bash", "-c", line + " --silent --fail"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == shown


def test_the_keyboard_is_enough(browser, server):
    opened(browser, server, "zero-shot-classification")
    browser.find_element(By.ID, "task").send_keys(Keys.TAB, Keys.TAB)
    active = browser.switch_to.active_element
    assert active.get_attribute("id") == "field-text"
    active.send_keys(Keys.CONTROL, Keys.ENTER)
    assert answered(browser).find_elements(By.CSS_SELECTOR, ".bars tr")


def test_every_field_has_a_name_for_screen_readers(browser, server):
    for task in SHOWN:
        opened(browser, server, task)
        for field in browser.find_elements(By.CSS_SELECTOR, "input, textarea, select, button"):
            assert not field.is_displayed() or field.accessible_name, field.get_attribute("outerHTML")
    result = browser.find_element(By.ID, "result")
    assert result.get_attribute("aria-live") == "polite"


def test_text_from_right_to_left_stands_at_the_right(browser, server):
    opened(browser, server, "token-classification")
    field = browser.find_element(By.ID, "field-text")
    browser.execute_script("arguments[0].value = 'يولد جميع الناس أحراراً في القاهرة'", field)
    assert browser.execute_script("return getComputedStyle(arguments[0]).direction", field) == "rtl"
    browser.find_element(By.ID, "go").click()
    text = answered(browser).find_element(By.CSS_SELECTOR, ".text")
    assert browser.execute_script("return getComputedStyle(arguments[0]).direction", text) == "rtl"
    assert "يولد جميع الناس" in text.text


def test_marks_stand_where_the_characters_do(browser, server):
    """Offsets count characters: emoji before a span must not shift it."""
    opened(browser, server, "token-classification")
    script = """
      return import('/page/answers.js').then(({marked}) => {
        const made = marked('👩‍👩‍👧 𝒳 in Berlin.', [{start: 11, end: 17, label: 'LOC', note: 'LOC'}]);
        return made.querySelector('mark').firstChild.textContent;
      });"""
    text = "👩‍👩‍👧 𝒳 in Berlin."
    start = text.index("Berlin")
    script = script.replace("start: 11, end: 17", f"start: {start}, end: {start + 6}")
    assert browser.execute_script(script) == "Berlin"


def test_markup_in_a_text_stays_text(browser, server):
    opened(browser, server, "embedding")
    asked(browser, "field-texts", "<img src=x onerror=document.title='broken'>\n<b>bold</b>")
    result = answered(browser)
    assert "<b>bold</b>" in result.text
    assert not result.find_elements(By.CSS_SELECTOR, "img, b")
    assert browser.title == "xlmr-ray"


def test_a_mistake_is_said_in_the_page(browser, server):
    opened(browser, server, "fill-mask")
    asked(browser, "field-text", "no mask here")
    error = waited(browser, lambda b: b.find_element(By.CSS_SELECTOR, "#result .error"))
    assert error.text.startswith("422:")
    assert "mask" in error.text


def test_nothing_is_asked_of_anyone_else(browser, server):
    browser.get_log("performance")
    opened(browser, server, "text-classification")
    browser.find_element(By.ID, "go").click()
    answered(browser)
    asked = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = {one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"}
    assert urls
    assert all(url.startswith((server.url, "data:", "about:")) for url in urls), urls


def test_it_fits_a_phone(browser, server):
    looks(browser, width=380, dark=True)
    try:
        opened(browser, server, "embedding")
        browser.find_element(By.ID, "go").click()
        answered(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
    finally:
        looks(browser, width=1000)
