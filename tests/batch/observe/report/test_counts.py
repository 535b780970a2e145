"""Counts of shards add up to the counts of all rows, whatever the shards are."""

import json
import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.batch.observe.report.counts import (
    CLASSES,
    LONGEST,
    OTHERS,
    SHARD_VALUES,
    VALUES,
    Counts,
    Summary,
    bin_edges,
    summarize,
)

from .reports import rows

ROW = st.tuples(st.sampled_from(["a", "b", None, "ж"]), st.sampled_from(["de", None, "en"]), st.integers(1, 5000))


def table_of(some):
    labels, langs, tokens = (list(part) for part in zip(*some, strict=True)) if some else ([], [], [])
    table = rows(labels, langs, tokens=tokens)
    scores = pa.array([0.05 * (t % 21) for t in tokens], pa.float32())  # of the row itself, not its place
    truncated = pa.array([t % 2 == 0 for t in tokens], pa.bool_())
    names = table.column_names
    return table.set_column(names.index("score"), "score", scores).set_column(
        names.index("truncated"), "truncated", truncated
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=5))
def test_shards_add_up_to_the_whole_through_json(shards):
    total = Summary()
    for some in shards:
        content = json.loads(json.dumps(summarize(table_of(some), [""], ["lang"]).to_json()))
        total.add(Summary.from_json(content))
    whole = summarize(table_of([row for some in shards for row in some]), [""], ["lang"])
    assert total.to_json() == Summary.from_json(whole.to_json()).to_json()
    assert total.rows == sum(map(len, shards))
    assert sum(group.rows for group in total.groups["lang"].values()) == total.rows


def test_counts_are_those_of_a_plain_count():
    some = [(random.Random(i).choice("abc"), random.Random(i + 99).choice(["de", "en"]), i + 1) for i in range(300)]
    summary = summarize(table_of(some), [""], ["lang"])
    assert summary.measures["label"].by == {x: sum(1 for label, _, _ in some if label == x) for x in "abc"}
    assert summary.groups["lang"]["de"].measures["label"].by["a"] == sum(1 for x, y, _ in some if (x, y) == ("a", "de"))
    assert summary.measures["truncated"].by == {"1": 150}


@pytest.mark.parametrize("scale", ["linear", "log"])
@given(values=st.lists(st.floats(0.001, 3000), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_quantile_is_within_a_bin_of_the_true_one(scale, values):
    column = {"linear": "score", "log": "perplexity"}[scale]
    counts = summarize(pa.table({column: pa.array(values, pa.float64())}), [""], []).measures[column]
    assert counts.total == len(values)
    for q in (0.0, 0.05, 0.5, 0.95, 1.0):
        true = float(np.quantile(values, q, method="inverted_cdf"))
        width = 0.05 if scale == "linear" else true * 0.1
        assert abs(counts.quantile(q) - true) <= width * 1.01, (q, true)


def test_bins_hold_what_is_in_them():
    values = [0.0, 0.05, 0.051, 0.5, 0.999, 1.0, -0.05, -0.04, -1.0, 7.3]
    counts = summarize(pa.table({"score": values}), [""], []).measures["score"]
    for value in values:
        [bin] = [
            n
            for n in map(int, counts.by)
            if bin_edges("linear", n)[0] - 1e-9 <= value <= bin_edges("linear", n)[1] + 1e-9
        ][:1]
        assert counts.by[str(bin)] > 0
    assert max(map(int, counts.by)) == 145  # 7.3 is the upper end of its bin, as 1.0 is of the highest score's
    assert "19" in counts.by
    assert "20" not in counts.by


def test_lengths_cut_to_a_limit_and_norms_near_one_are_not_beyond_it():
    table = pa.table({"tokens": [512, 512, 300], "perplexity": [0.9999999, 1.0, 1.0000001]})
    measures = summarize(table, [""], []).measures
    assert measures["tokens"].quantile(1.0) == 512
    assert list(measures["perplexity"].bins()) == [(pytest.approx(2 ** (-1 / 8)), 1.0, 3)]


def test_what_is_not_a_number_or_is_null_is_left_out():
    table = pa.table({"perplexity": [1.0, None, math.inf, math.nan, 0.0], "label": ["a", None, "a", "b", None]})
    measures = summarize(table, [""], []).measures
    assert measures["perplexity"].total == 2
    assert measures["perplexity"].quantile(0.1) == 0.0
    assert measures["label"].by == {"a": 2, "b": 1}
    assert math.isnan(Counts("log").quantile(0.5))


def test_each_tasks_fields_by_their_prefix_and_type():
    entity = pa.struct([("label", pa.string()), ("score", pa.float32())])
    table = pa.table(
        {
            "ner_entities": pa.array([[("PER", 0.5), ("ORG", 0.9)], [], [("PER", 0.4)]], pa.list_(entity)),
            "lang": ["de", "de", "en"],
            "vec_embedding": pa.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], pa.list_(pa.float32(), 2)),
            "zero_labels": pa.array([[("x", 0.8), ("y", 0.2)], [("y", 0.6)], []], pa.list_(entity)),
            "qa_answer": ["", "a b", ""],
            "mc_choice": pa.array([0, 1, 1], pa.int32()),
            "gen_generated_text": ["abcd", "", "ж" * 4],
        }
    )
    summary = summarize(table, ["ner_", "vec_", "zero_", "qa_", "mc_", "gen_"], ["lang"])
    by = {name: dict(counts.by) for name, counts in summary.measures.items()}
    assert by["ner_entities"] == {"PER": 2, "ORG": 1}
    assert by["ner_entities none"] == {"1": 1}
    assert by["zero_labels first"] == {"x": 1, "y": 1}
    assert by["zero_labels first score"] == {"15": 1, "11": 1}
    assert by["qa_answer none"] == {"1": 2}
    assert by["mc_choice"] == {"0": 1, "1": 2}
    assert summary.measures["vec_embedding norm"].quantile(1.0) == pytest.approx(5, rel=0.1)
    assert summary.measures["gen_generated_text characters"].by["15"] == 2
    assert summary.groups["lang"]["de"].measures["ner_entities"].by == {"PER": 1, "ORG": 1}


def test_a_column_that_tells_documents_apart_is_no_group():
    def summary(values):
        return summarize(pa.table({"label": ["a"] * len(values), "c": values}), [""], ["c"]).groups["c"]

    assert summary([str(i) for i in range(SHARD_VALUES)]) is not None
    assert summary([str(i) for i in range(SHARD_VALUES + 1)]) is None
    assert summary(["x" * (LONGEST + 1)]) is None
    assert summary([0.5]) is None
    assert list(summary([True, None])) == ["true", "(none)"]
    assert "d" not in summarize(pa.table({"label": ["a"]}), [""], ["d"]).groups
    total = Summary()
    for start in range(0, VALUES + 10, 10):
        total.add(summarize(pa.table({"c": [str(start + i) for i in range(10)]}), [""], ["c"]))
        assert (total.groups["c"] is None) == (start + 10 > VALUES)
    total.add(summarize(pa.table({"c": ["1"]}), [""], ["c"]))
    assert total.groups["c"] is None


def test_very_many_classes_are_bounded_and_none_is_lost():
    labels = [f"l{i}" for i in range(1000)] + ["often"] * 50
    counts = summarize(pa.table({"label": labels}), [""], []).measures["label"]
    assert len(counts.by) == CLASSES + 1
    assert counts.by["often"] == 50
    assert counts.total == 1050
    assert counts.by[OTHERS] == 1050 - 50 - (CLASSES - 1)


def test_kept_columns_are_no_answers():
    """A column of the input may have the name and not the type of a task's."""
    table = pa.table({"answer": [3, 4], "score": ["high", "low"], "truncated": [None, None], "label": ["a", "b"]})
    summary = summarize(table, [""], ["score"], kept=["answer", "score", "truncated"])
    assert set(summary.measures) == {"label"}
    assert set(summary.groups["score"]) == {"high", "low"}
