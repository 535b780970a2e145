"""What an incremental run has scored against what was scored before it: a change is caught, and none is not."""

import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from tests.batch.direct import job_of, rows_of, run_directly
from tests.tasks.texts import languages
from xlmr_ray import pipeline
from xlmr_ray.batch import run
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.observe import drift
from xlmr_ray.batch.observe.drift import chance, number_bins, read_drift, scored_by, scored_until, shifts, stability
from xlmr_ray.batch.observe.printing import print_status, status_lines
from xlmr_ray.batch.observe.report.counts import Counts, Summary, summarize
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.observe.report.page import report_page
from xlmr_ray.batch.run import Drifted
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import Interrupted

BOUND = 0.25


def test_the_index_and_what_chance_explains():
    before, after = {"a": 30, "b": 70}, {"a": 60, "b": 40, "c": 3}
    p = (np.array([30, 70, 0]) + 0.5) / 101.5
    q = (np.array([60, 40, 3]) + 0.5) / 104.5
    assert stability(before, after) == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert stability(before, before) == 0
    for bins in (2, 5, 10, 60):
        wanted = stats.chi2.ppf(stats.norm.cdf(drift.UNLIKELY), bins - 1) * (1 / 500 + 1 / 200)
        assert chance(bins, 500, 200) == pytest.approx(wanted, rel=0.08)


def test_bins_of_numbers_are_tenths_of_the_rows_before():
    before = {str(key): 10 for key in range(-20, 20)}
    bins = number_bins(before, {"-100": 1, "30": 1})
    sizes = Counter(bins[key] for key in before for _ in range(before[key]))
    assert set(sizes.values()) == {40}
    assert bins["-100"] == bins["-20"]
    assert bins["30"] == bins["19"]


@pytest.fixture(scope="module")
def scored():
    """Rows of a job over real texts in six languages, and of Finnish ones."""
    names = ("de", "en", "fr", "es", "el", "bg", "fi")
    rows = [(name, text) for name in names for text in languages()[name]]
    table = pipeline("text-classification", "embedded:mini").table([text for _, text in rows])
    return table.append_column("lang", pa.array([name for name, _ in rows]))


def corpus(scored, random, count, *, replaced=False):
    """A summary of so many rows of six languages. `replaced`: what is called German is Finnish."""
    lang = np.array(scored["lang"].to_pylist())
    drawn = random.choice(np.flatnonzero(lang != "fi"), count)
    if replaced:
        german = lang[drawn] == "de"
        drawn[german] = random.choice(np.flatnonzero(lang == "fi"), german.sum())
    rows = scored.take(pa.array(drawn))
    if replaced:
        said = ["de" if one == "fi" else one for one in rows["lang"].to_pylist()]
        rows = rows.set_column(rows.column_names.index("lang"), "lang", pa.array(said))
    return summarize(rows, [""], ["lang"], kept=["lang"])


@pytest.mark.parametrize("seed", range(10))
def test_a_language_that_was_replaced_is_caught_and_no_change_is_not(scored, seed):
    random = np.random.default_rng(seed)
    before = corpus(scored, random, 600)
    same = list(shifts(before, corpus(scored, random, 300)))
    assert max(one.size for one in same) < BOUND / 2
    other = [one for one in shifts(before, corpus(scored, random, 300, replaced=True)) if one.size > BOUND]
    assert "label" in {one.measure for one in other if (one.column, one.value) == ("lang", "de")}
    assert {one.value for one in other if one.column and one.measure} == {"de"}  # and the others are let be


def test_what_each_kind_of_spread_says():
    def summary(labels, cut, tokens, lang):
        measures = {
            "label": Counts("classes", Counter(labels)),
            "truncated": Counts("share", Counter({"1": cut})),
            "tokens": Counts("log", Counter(tokens)),
        }
        groups = {"lang": {name: Summary(rows) for name, rows in lang.items()}}
        return Summary(1000, measures, groups)

    before = summary({"a": 500, "b": 500}, 10, {"40": 500, "48": 500}, {"de": 500, "en": 500})
    after = summary({"a": 500, "b": 200, "c": 300}, 600, {"60": 1000}, {"de": 900, "it": 100})
    found = {(one.measure, one.column, one.value): one for one in shifts(before, after)}
    assert found["label", "", ""].unseen == 0.3
    assert found["truncated", "", ""].psi > 1
    assert found["tokens", "", ""].psi > BOUND
    mix = found["", "lang", ""]
    assert (mix.unseen, mix.before, mix.after) == (0.1, 1000, 1000)
    assert mix.psi > BOUND
    assert str(mix).startswith("rows by lang: stability index ")
    assert all(one.size == 0 for one in shifts(before, before))
    assert all(math.isfinite(one.psi) for one in shifts(Summary(0), after))


def write(folder, day, texts):
    rows = [{"text": text, "lang": lang} for lang, own in texts.items() for text in own]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{day}.parquet")


def test_a_job(tmp_path):
    """Three days: the second is like the first, on the third German is Finnish, and is published when it is mended."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    known = languages()
    usual = {name: known[name] for name in ("de", "en", "fr")}
    content = job_of("embedded:mini", folder, output, keep=["lang"]).model_dump(exclude={"input": {"formats"}})
    job = check_job({**content, "incremental": True, "errors": {"max_drift": BOUND}}, "job")
    store = open_store(str(output))

    write(folder, 1, usual)
    first = run_directly(job)
    assert read_drift(store, first.run_id) is None  # nothing was there before
    write(folder, 2, {name: texts[::-1][:25] for name, texts in usual.items()})
    second = run_directly(job)
    found = read_drift(store, second.run_id)
    assert found.after == first.run_id
    assert found.largest.size < BOUND
    assert {(one.column, one.value) for one in found.shifts} == {
        ("", ""), ("lang", ""), ("lang", "de"), ("lang", "en"), ("lang", "fr"),
    }  # fmt: skip
    both = scored_by(store, first.run_id)
    both.add(scored_by(store, second.run_id))
    assert found.scored == scored_until(store, second.run_id) == both

    write(folder, 3, {**usual, "de": known["fi"]})
    with pytest.raises(Drifted, match=r"^label.* lang is de: .*errors.max_drift 0.25: nothing is published; mend"):
        run_directly(job)
    assert current(store).run_id == second.run_id
    [third] = [json.loads(line) for line in status_lines(store) if not json.loads(line)["finished"]]
    assert third["drift"]["value"] == "de"
    report = gather_report(store, third["run_id"])
    assert report.to_json()["drift"]["shifts"][0] == third["drift"]
    assert "Against what was scored before" in report_page(report)
    with (tmp_path / "said").open("w") as file:
        print_status(store, Console(file=file, width=200))
    assert "largest change since run" in (tmp_path / "said").read_text()

    (folder / "3.parquet").unlink()
    write(folder, 3, usual)
    last = run_directly(job)
    assert current(store).runs == (first.run_id, second.run_id, last.run_id)
    assert last.run_id != third["run_id"]  # of which nothing is published, not for a moment
    assert last.rows_ok == sum(map(len, usual.values()))


def test_a_file_that_was_refused_and_taken_away_is_not_published(tmp_path):
    """Committed by a launch that was refused, or that did not come as far; rows of deleted inputs stay otherwise."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    known = languages()
    content = job_of("embedded:mini", folder, output, keep=["lang"]).model_dump(exclude={"input": {"formats"}})
    job = check_job({**content, "incremental": True, "errors": {"max_drift": BOUND}}, "job")
    store = open_store(str(output))
    write(folder, 1, {"de": known["de"]})
    first = run_directly(job)
    write(folder, 2, {"de": known["fi"]})
    write(folder, 3, {"de": known["de"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "compare_with_table", stop)
        with pytest.raises(Interrupted):
            run_directly(job)
    (folder / "2.parquet").unlink()
    with pytest.raises(Drifted):
        run_directly(job)  # whose rows are committed, so they count
    assert current(store).run_id == first.run_id
    last = run_directly(job)
    assert current(store).runs == (first.run_id, last.run_id)
    sources = {row["source"].rpartition("/")[2] for row in rows_of(output)}
    assert sources == {"1.parquet", "3.parquet"}


def stop(*_):
    raise KeyboardInterrupt
