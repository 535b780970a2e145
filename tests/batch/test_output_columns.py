"""Columns of the output that would meet are named before anything starts."""

import pyarrow as pa
import pytest

from xlmr_ray import UserError
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.output_columns import check_output_columns
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.cli import main

ONE, TWO = {"task": "text-classification"}, {"task": "embedding"}


def columns(keep, tasks=(ONE,), id=None):
    content = {
        "input": {"path": "in.parquet", "keep": list(keep), "id": id},
        "tasks": list(tasks),
        "output": {"path": "out"},
    }
    job = check_job(content, "test")
    return columns_of(job, task_recipes(job))


@pytest.mark.parametrize(
    ("keep", "tasks", "id", "message"),
    [
        (["source"], [ONE], None, "two columns 'source', the row's own and kept: take it out of input.keep"),
        (["lang", "row"], [ONE], None, "two columns 'row', the row's own and kept"),
        (["text_changed"], [ONE], None, "two columns 'text_changed'"),
        (["id"], [ONE], "doc", "two columns 'id', the row's own and kept"),
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
    check_output_columns(["b"], None, [("t", "", pa.schema([("a", pa.int8())]))])


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
