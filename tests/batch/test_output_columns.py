"""Columns of the output that would meet are named before anything starts."""

import json

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from tests.batch.direct import job_of, rows_of, run_directly
from xlmr_ray import UserError
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.output_columns import check_output_columns
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.cli import main

ONE, TWO = {"task": "text-classification"}, {"task": "embedding"}


def columns(keep, tasks=(ONE,), id=None, text="text"):
    content = {
        "input": {"path": "in.parquet", "keep": keep, "id": id, "text": text},
        "tasks": list(tasks),
        "output": {"path": "out"},
    }
    job = check_job(content, "test")
    return columns_of(job, task_recipes(job))


@pytest.mark.parametrize(
    ("keep", "tasks", "id", "message"),
    [
        (["source"], [ONE], None, "two columns 'source', the row's own and kept: give it another name in the output"),
        (["source"], [ONE], None, r"\(input\.keep: \{source: …\}\)$"),
        ({"a": "row"}, [ONE], None, r"\(input\.keep: \{a: …\}\)$"),
        (["id"], [ONE], None, "say input.id: id, and it is carried along$"),
        ({"key": "id"}, [ONE], None, "say input.id: key, and it is carried along$"),
        ({"url": "ID"}, [ONE], "url", r"columns 'id' .* and 'ID' \(kept\), which differ by case only"),
        ({"a": "x", "b": "x"}, [ONE], None, "a name is there twice"),
        ({"body": "text"}, [ONE], None, "'text' is also the name under which text is carried"),
        (["a", "a"], [ONE], None, "a column is named twice"),
        (["lang", "row"], [ONE], None, "two columns 'row', the row's own and kept"),
        (["text_changed"], [ONE], None, "two columns 'text_changed'"),
        (["id"], [ONE], "doc", "'id' is also the name under which doc is carried; give it another name"),
        (["label"], [ONE], None, "two columns 'label', task text-classification's and kept"),
        (["tokens"], [ONE], None, "two columns 'tokens', task text-classification's and kept"),
        (
            ["Label"],
            [ONE],
            None,
            r"columns 'label' \(task text-classification's\) and 'Label' \(kept\), which differ by",
        ),
        (["a_label"], [{**ONE, "name": "a"}, TWO], None, "two columns 'a_label', task text-classification's and kept"),
        ([], [{**ONE, "name": "a"}, {**TWO, "name": "A"}], None, "'a_tokens' .* and 'A_tokens' .* another name"),
    ],
)
def test_columns_that_meet(keep, tasks, id, message):
    with pytest.raises(UserError, match=message):
        columns(keep, tasks, id)


def test_what_may_be_kept():
    assert columns(["id", "lang"], id="id").keep == ("id", "lang")
    assert columns(["label"], [ONE, TWO]).keep == ("label",)
    assert columns({"label": "gold_label"}).keep == ("gold_label",)
    assert columns({"key": "id"}, id="key").keep == ("id",)
    assert columns({"text": "text", "id": "key"}).keep == ("text", "key")
    check_output_columns(Columns({"text": "text"}, keep=("b",)), [("t", "", pa.schema([("a", pa.int8())]))])


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.csv"])
def test_renamed_columns_are_in_the_output(tmp_path, name):
    table = pa.table({"text": ["one", "two"], "label": ["a", "b"], "row": ["x", "y"], "id": ["1", "2"]})
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name)
    elif name.endswith("csv"):
        pc.write_csv(table, tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    keep = {"label": "gold_label", "row": "number", "text": "original", "id": "key"}
    job = job_of("embedded:mini", tmp_path / name, tmp_path / "out", keep=keep, id="id")
    run_directly(job)
    rows = rows_of(tmp_path / "out")
    assert [{name: row[of] for name, of in keep.items()} for row in rows] == table.select(list(keep)).to_pylist()
    assert [(row["row"], row["id"]) for row in rows] == [(0, "1"), (1, "2")]
    assert list(rows[0])[:8] == ["source", "row", "id", "gold_label", "number", "original", "key", "text_changed"]
    groups = gather_report(open_store(str(tmp_path / "out"))).summary.groups
    assert {name for name, found in groups.items() if found} == {"gold_label", "number", "key"}  # no document's text


def test_a_name_is_part_of_a_run_where_it_is_another(tmp_path):
    assert columns(["lang"]).identity() == {"text": {"text": "text"}, "id": None, "keep": ("lang",)}
    assert columns({"lang": "lang"}) == columns(["lang"])
    assert columns({"lang": "l"}).identity() != columns(["l"]).identity()


def test_it_is_one_line_before_anything_starts(tmp_path, monkeypatch, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "label": "b"}\n')
    call = ["run", "text-classification", "--model", "embedded:mini", "--input", str(tmp_path / "in.jsonl")]
    monkeypatch.setattr(
        "sys.argv", ["xlmr-ray", *call, "--output", str(tmp_path / "out"), "--set", "input.keep=[label]"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "two columns 'label'" in said
    assert not (tmp_path / "out" / "_runs").exists()
