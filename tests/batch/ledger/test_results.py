"""Published rows for other engines: what they read is what was committed, in one schema."""

import json
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import xlmr_ray
from tests.batch.days import launch, truth, whole, write
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.ledger.commit import to_parquet
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA
from xlmr_ray.batch.ledger.results import as_json, as_sql, result_files
from xlmr_ray.batch.stages.rows import error_table, good_rows, output_table
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.cli import app, main
from xlmr_ray.errors import UserError


@pytest.fixture
def days(tmp_path):
    """An output of two runs, the second of which replaced a file of the first, and an unfinished one beside them; in
    a folder that readers take for a partition, and whose name is a pattern to DuckDB.
    """
    out = tmp_path / "lang=de" / "o'ut[1]"
    store, folder = open_store(str(out)), tmp_path / "corpus"
    write(folder, "a.jsonl", ["a0", "a1", "a2"])
    write(folder, "b.jsonl", ["b'0"])
    (folder / "dead.parquet").write_bytes(b"no parquet")
    whole(store, folder)
    write(folder, "a.jsonl", ["A0"])
    whole(store, folder)
    write(folder, "c.jsonl", ["not published"])
    steps = launch(store, folder)
    for _ in range(3):
        next(steps)
    (folder / "c.jsonl").unlink()
    return out, folder


def texts(folder):
    (folder / "dead.parquet").unlink(missing_ok=True)
    return sorted(truth(folder).values())


def test_files_are_those_of_the_table_over_all_runs(days):
    out, folder = days
    files = result_files(str(out))
    rows = ds.dataset(files).to_table()
    assert sorted(rows["text"].to_pylist()) == texts(folder) == ["A0", "b'0"]
    (errors,) = result_files(str(out), errors=True)
    assert pq.read_table(errors)["code"].to_pylist() == ["wrong_format"]
    assert len(list((out / "data").rglob("*.parquet"))) > len(files)


def test_the_command_prints_what_engines_take(days):
    out, folder = days
    run = CliRunner().invoke
    lines = run(app, ["files", str(out)]).stdout.splitlines()
    assert lines == result_files(str(out))
    assert json.loads(run(app, ["files", str(out), "--format", "json"]).stdout) == lines
    query = run(app, ["files", str(out), "--format", "sql"]).stdout
    assert sorted(row[0] for row in duckdb.sql(f"SELECT text FROM ({query})").fetchall()) == texts(folder)
    assert set(duckdb.sql(f"SELECT lang FROM ({query})").fetchall()) == {("xx",)}
    query = run(app, ["files", str(out), "--errors", "--format", "sql"]).stdout
    assert duckdb.sql(f"SELECT code FROM ({query})").fetchall() == [("wrong_format",)]


def test_no_files():
    assert json.loads("".join(as_json(iter(())))) == []
    assert duckdb.sql("".join(as_sql(iter(())))).fetchall() == []


def test_nothing_is_published(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="nothing is published there"):
        result_files(str(tmp_path))
    monkeypatch.setattr("sys.argv", ["xlmr-ray", "files", str(tmp_path), "--format", "sql"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_ray_dataset(ray_session, days):
    out, folder = days
    rows = xlmr_ray.read_results(str(out))
    assert sorted(row["text"] for row in rows.take_all()) == texts(folder)
    assert {row["lang"] for row in rows.take_all()} == {"xx"}
    assert xlmr_ray.read_results(str(out), errors=True).take_all()[0]["code"] == "wrong_format"


def test_a_ray_dataset_of_no_errors_has_their_columns(ray_session, local, tmp_path):
    write(tmp_path / "corpus", "a.jsonl", ["a"])
    whole(local, tmp_path / "corpus")
    errors = xlmr_ray.read_results(str(tmp_path / "out"), errors=True)
    assert errors.count() == 0


def test_a_plain_reader_of_a_finished_runs_folder_sees_its_committed_rows(local, tmp_path):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write(folder, "a.jsonl", ["a", "b", "c"])
    (folder / "dead.parquet").write_bytes(b"no parquet")
    steps = launch(local, folder)
    for _ in range(4):
        next(steps)
    run = next(iter(local.folders("data/")))
    local.put(f"data/{run}/0000000-000001-{'e' * 16}.parquet", b"of an attempt that crashed")
    whole(local, folder)
    assert current(local).run_id == run
    wanted = ["a", "b", "c"]
    assert sorted(pq.read_table(out / "data" / run)["text"].to_pylist()) == wanted
    query = f"SELECT text FROM read_parquet('{out}/data/{run}/*.parquet') ORDER BY 1"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == wanted
    assert pq.read_table(out / "errors" / run)["code"].to_pylist() == ["wrong_format"]


# One schema


NULL = st.none()
KEPT = st.sampled_from(
    [
        pa.array(["x", None, "y"]),
        pa.array([None, None, None], pa.string()),
        pa.array([None, None, None], pa.null()),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array(["x", "y", "z"], pa.large_string()),
        pa.array(["x", None, "z"], pa.string_view()),
        pa.array(["x", "y", "z"], pa.string()),
    ]
)
TEXT = st.sampled_from(
    [
        pa.array(["one", "two", "three"]),
        pa.array([None, None, None], pa.string()),
        pa.array(["one", "", "three"], pa.large_string()),
        pa.array(["one", "two", "one"]).dictionary_encode(),
    ]
)
IDS = st.sampled_from([pa.array([1, 2, 3]), pa.array(["a", None, "c"]), pa.array([None] * 3, pa.null())])
FILES = st.lists(st.tuples(KEPT, TEXT, IDS, st.integers(0, 3), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(FILES)
def test_every_file_of_every_run_has_the_same_schema(files):
    """Whatever the inputs' own types of strings are, in shards without rows, of error rows alone, of nulls alone."""
    columns = Columns(text={"text": "text"}, id="id", keep=("lang",))
    scored = pa.table({"label": pa.array([], pa.string()), "score": pa.array([], pa.float32())})
    with tempfile.TemporaryDirectory() as place:
        for number, (kept, text, ids, rows, as_lines) in enumerate(files):
            table = pa.table({"lang": kept, "text": text, "id": ids}).slice(0, rows)
            if as_lines:
                lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
                (Path(place) / f"{number}.jsonl").write_text("".join(lines) or "\n")
            else:
                pq.write_table(table, Path(place) / f"{number}.parquet")
        schemas, errors = set(), set()
        for shard in plan_shards(find_inputs(place).inputs, shard_rows=2, columns=columns):
            if not isinstance(shard, Shard):
                continue
            read = read_shard(shard, columns)
            good = good_rows(read)
            results = pa.table([pa.nulls(len(good), field.type) for field in scored.schema], schema=scored.schema)
            written = to_parquet(output_table(read.take(good), shard.input.key, columns, [("", results)]))
            schemas.add(pq.read_schema(pa.BufferReader(written)).remove_metadata().to_string())
            bad = to_parquet(error_table(read, shard.input.key).cast(ERROR_SCHEMA))
            errors.add(pq.read_schema(pa.BufferReader(bad)).remove_metadata().to_string())
        assert len(schemas) <= 1
        assert len(errors) <= 1
