"""A run's report as data: what the records and launches say, and no more."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from tests.batch.observe.report.reports import RUN, finished, launch, plain_run, plan, rows, shard
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, Stats, new_attempt
from xlmr_ray.batch.observe.report.gather import EXAMPLES, at_work, gather_report, moments
from xlmr_ray.batch.observe.report.leave import leave_report, report_key, save_report
from xlmr_ray.errors import UserError


def test_sums_are_those_of_the_records(local):
    plain_run(local)
    report = gather_report(local)
    records = list(committed(local, RUN))
    assert (report.run_id, report.name, report.state, report.planned) == (RUN, "labels", "published", None)
    assert (report.shards, report.sources) == (6, 6)
    assert report.rows == sum(r.rows_in for r in records) == report.rows_ok + report.rows_error
    assert report.rows_error == 16 == sum(error.rows for error in report.errors)
    assert report.tokens == sum(r.stats.tokens for r in records)
    assert report.padding == 6 / (6 + report.tokens)
    assert report.bytes == sum(file.bytes for r in records for file in r.files)
    assert report.summary.rows == report.rows_ok == 240
    assert {lang: group.rows for lang, group in report.summary.groups["lang"].items()} == {
        "de": 80, "en": 80, "日本語": 80,
    }  # fmt: skip
    assert sum(moment.rows for moment in report.moments) == report.rows
    assert sum(moment.tokens for moment in report.moments) == report.tokens
    [task] = report.tasks
    assert (task.name, task.model, task.weights) == ("text-classification", "embedded:mini", "ab" * 32)


def test_errors_by_code_with_positions_and_no_text(local):
    plain_run(local)
    first, second = gather_report(local).errors
    assert (first.code, first.rows, second.code, second.rows) == ("empty_text", 15, "malformed_json", 1)
    assert first.meaning == "the text is empty and the job says `errors.empty: error`"
    assert len(first.examples) == EXAMPLES
    assert first.examples[0] == ("in/1", 500)
    assert second.examples == (("in/3", 503),)


def test_what_a_device_did_and_its_share_of_the_peak(local):
    plan(local, ["a", "b"])
    shard(local, "a", rows(["x"], ["de"]), device="NVIDIA H100 80GB HBM3")
    shard(local, "b", rows(["x"], ["de"]), device="Some Processor (CPU)")
    finished(local, ["a", "b"])
    gpu, cpu = gather_report(local).devices
    assert (gpu.name, gpu.shards, gpu.hosts) == ("NVIDIA H100 80GB HBM3", 1, 1)
    assert gpu.utilization == pytest.approx(1e14 / 989e12)
    assert cpu.utilization is None


def test_cost_is_the_time_at_work_at_the_price(local):
    plain_run(local)
    report = gather_report(local)
    assert (report.price, report.currency) == (3.6, "EUR")
    assert report.cost == pytest.approx(report.active / 1000)
    assert gather_report(local, price=7.2).cost == pytest.approx(report.active / 500)


def test_an_unfinished_run_is_told_as_far_as_it_is(local):
    plan(local, ["a", "b", "c"])
    shard(local, "b", rows(["x", "y"], ["de", "en"]), codes=["empty_text"])
    with pytest.raises(UserError, match=f"nothing is published there yet; name one of its runs: {RUN}"):
        gather_report(local)
    report = gather_report(local, RUN)
    assert (report.state, report.shards, report.planned, report.rows) == ("unfinished", 1, 3, 3)


def test_a_run_with_nothing_committed_has_a_report(local):
    plan(local, ["a"])
    report = gather_report(local, RUN)
    assert (report.rows, report.moments, report.errors, report.cost) == (0, (), (), None)
    assert leave_report(local, RUN).endswith("report.html")


def test_records_without_counts_are_read(local):
    """Of a version that wrote none."""
    plan(local, ["a"])
    empty = ERROR_SCHEMA.empty_table()
    commit_shard(
        local, RUN, "a", attempt=new_attempt(), rows=rows(["x"], ["de"]), errors=empty, rows_in=1, source_key="in",
        source_etag="", stats=Stats(1.0, 7),
    )  # fmt: skip
    finished(local, ["a"])
    report = gather_report(local)
    assert (report.rows, report.tokens, report.summary.rows) == (1, 7, 0)
    assert leave_report(local)


def test_a_run_that_is_not_there_and_a_folder_that_cannot_be_written(local, tmp_path):
    plain_run(local)
    with pytest.raises(UserError, match=f"has no run feedfeedfeedfeed; its runs: {RUN}"):
        gather_report(local, "feedfeedfeedfeed")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/x: cannot be written: Not a directory"):
        save_report(local, None, tmp_path / "file" / "x")


def test_json_is_for_machines_and_made_anew_the_same(local, tmp_path):
    plain_run(local)
    assert leave_report(local) == local.url(report_key(RUN))
    first = json.loads(local.get(report_key(RUN, "json"))[0])
    assert first["version"] == 1
    assert first["devices"][0]["utilization"] == gather_report(local).devices[0].utilization
    labels = Counter(("good", "bad", "none of these")[(i * j) % 3] for i in range(6) for j in range(40))
    assert first["summary"]["measures"]["label"]["counts"] == labels
    save_report(local, RUN, tmp_path / "to" / "here")
    second = json.loads((tmp_path / "to" / "here" / "report.json").read_text())
    assert {**first, "made": 0} == {**second, "made": 0}


def test_the_report_of_a_bucket(store):
    plain_run(store, shards=2)
    assert leave_report(store).endswith(report_key(RUN))
    assert store.get(report_key(RUN))[0].startswith(b"<!doctype html>")


def test_time_at_work_leaves_pauses_out_and_counts_the_way_to_the_first_shard():
    starts, ends = np.array([10.0, 11.0, 100.0, 13.0]), np.array([14.0, 12.0, 105.0, 15.0])
    work = at_work(starts, ends, [])
    assert (work.started, work.seconds) == (10.0, 10.0)
    assert work.since(np.array([10.0, 14.5, 15.0, 101.0, 105.0])).tolist() == [0.0, 4.5, 5.0, 6.0, 10.0]
    # Launched at 8 and, after a pause, at 97; a launch after which nothing was committed is no work.
    again = at_work(starts, ends, [8.0, 97.0, 500.0])
    assert (again.started, again.seconds) == (8.0, 7.0 + 8.0)


def test_moments_hold_every_row_once():
    times = np.linspace(0.1, 100, 1000)
    found = moments(times, np.ones(1000), np.full(1000, 7.0), 100.0)
    assert len(found) == 60
    assert sum(m.rows for m in found) == 1000
    assert sum(m.tokens for m in found) == 7000
    assert math.isclose(found[-1].start + found[-1].seconds, 100, rel_tol=1e-3)
    assert len(moments(times[:1], np.ones(1), np.ones(1), 0.0)) == 2


def test_launches_are_told_in_their_order(local):
    plain_run(local)
    launch(local, started=9.0)
    assert [one.started for one in gather_report(local).launches] == [0.0, 9.0]
