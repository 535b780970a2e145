"""Delta tables at a version: what comes is what delta-rs reads of it, in any order."""

import base64
import datetime
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.days import launch, seen, whole
from tests.batch.direct import job_of, rows_of, run_directly
from tests.batch.lake.reading import columns_of, counted, read, tables_of
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.errors import UserError

deltalake = pytest.importorskip("deltalake")
NAMES = ["text", "lang", "year", "day", "n"]


def rows(texts, lang="de", year=2024, n=1):
    count = len(texts)
    return pa.table(
        {
            "text": texts,
            "lang": pa.array([lang] * count, pa.string()),
            "year": pa.array([year] * count, pa.int32()),
            "day": pa.array([datetime.date(2024, 2, 29)] * count, pa.date32()),
            "n": pa.array([n] * count, pa.int64()),
        }
    )


def log(table, number):
    return table / "_delta_log" / f"{number:020}.json"


@pytest.fixture
def table(tmp_path):
    """Four versions: two files; one of them replaced; a column more, in new files only; a file removed."""
    where = tmp_path / "t"
    deltalake.write_deltalake(where, rows(["a", "b", "c"]), partition_by=["lang", "year", "day"])
    deltalake.write_deltalake(where, rows(["d"], "x y/ö%", 7), mode="append")
    deltalake.DeltaTable(where).update({"n": "n + 1"}, predicate="text = 'b'")
    more = rows(["e"], None).append_column("extra", pa.array(["only here"]))
    deltalake.write_deltalake(where, more, mode="append", schema_mode="merge")
    deltalake.DeltaTable(where).delete("text = 'd'")
    return where


@pytest.mark.parametrize("version", [None, 0, 1, 2, 3, 4])
def test_a_version_as_the_library_reads_it(table, version):
    own = deltalake.DeltaTable(table, version=version)
    names = [*NAMES, "extra"] if version in (None, 3, 4) else NAMES
    assert read(table, names, version) == counted(own.to_pyarrow_table().select(names).to_pylist())


def test_partitions_have_their_types(table):
    (types,) = {part.schema.field("year").type for part in tables_of(table, NAMES)}
    assert types == pa.int32()
    assert {part.schema.field("day").type for part in tables_of(table, NAMES)} == {pa.date32()}


def test_in_a_bucket(seaweed, monkeypatch, tmp_path):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    where = f"{seaweed.new_folder()}/t"
    store = {**seaweed.environment, "AWS_ALLOW_HTTP": "true"}
    for texts in (["a", "b"], ["c"]):
        deltalake.write_deltalake(
            where, rows(texts, "x y/ö%"), partition_by=["lang"], mode="append", storage_options=store
        )
    deltalake.DeltaTable(where, storage_options=store).delete("text = 'a'")
    own = deltalake.DeltaTable(where, storage_options=store).to_pyarrow_table()
    assert read(where, NAMES) == counted(own.to_pylist()) != read(where, NAMES, version=1)
    out = f"{seaweed.new_folder()}/out"
    run_directly(job_of("embedded:mini", where, out, keep=["lang", "year"]))
    assert {row["lang"] for row in rows_of(out)} == {"x y/ö%"}


def test_the_version_is_part_of_the_inputs(table):
    first, other = (find_inputs(str(table), version=version).inputs for version in (0, 1))
    assert {one.table for one in first} == {f"{table}@0"}
    assert {one.table for one in other} == {f"{table}@1"}


def write(where, *texts):
    columns = {"text": list(texts), "id": [f"id-{text}" for text in texts], "lang": ["xx"] * len(texts)}
    deltalake.write_deltalake(where, pa.table(columns), mode="append")


def texts_of(store):
    return sorted(seen(store).values())


def test_a_table_that_moves_changes_nothing_of_a_run(tmp_path, store):
    where = tmp_path / "t"
    write(where, "a", "b", "c")
    write(where, "d")
    begun = launch(store, where, drop=True)
    assert [next(begun), next(begun), next(begun)] == ["listed", "planned", "committed"]
    write(where, "e")
    deltalake.DeltaTable(where).delete("text = 'd'")
    list(begun)
    assert texts_of(store) == ["a", "b", "c", "d"]
    whole(store, where, drop=True)
    assert texts_of(store) == ["a", "b", "c", "e"]


def test_incremental_runs_take_what_is_new_and_drop_what_is_gone(tmp_path, local):
    where = tmp_path / "t"
    write(where, "a", "b")
    whole(local, where, drop=True)
    write(where, "c")
    (found, *_) = whole(local, where, drop=True)
    assert (len(found.changes.todo), found.changes.gone) == (1, ())
    deltalake.DeltaTable(where).optimize.compact()
    deltalake.DeltaTable(where).delete("text = 'a'")
    whole(local, where, drop=True)
    assert texts_of(local) == ["b", "c"]


def test_rows_that_a_table_moved_are_never_kept_twice(tmp_path, local):
    where = tmp_path / "t"
    write(where, "a")
    job = job_of("embedded:mini", where, tmp_path / "out")
    job = job.model_copy(update={"incremental": True})
    assert job.input.deleted == "keep"
    assert prepare_run(job, local).found.changes.drop


@pytest.mark.parametrize("options", [{"mode": "name"}, {"features": ["rowIdsOfTheFuture"]}, {"deleted": True}])
def test_what_would_be_read_wrongly_is_refused(tmp_path, options):
    where = tmp_path / "t"
    deltalake.write_deltalake(where, rows(["a", "b", "c"]))
    first = [json.loads(line) for line in log(where, 0).read_text().splitlines()]
    add = next(line["add"] for line in first if "add" in line)
    meta = next(line["metaData"] for line in first if "metaData" in line)
    features = options.get("features", ["deletionVectors"] if "deleted" in options else ["columnMapping"])
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    lines = [{"protocol": protocol}]
    if "mode" in options:
        schema = json.loads(meta["schemaString"])
        for number, field in enumerate(schema["fields"]):
            field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": field["name"]}
        mapped = {"delta.columnMapping.mode": "name"}
        lines.append({"metaData": {**meta, "schemaString": json.dumps(schema), "configuration": mapped}})
    if "deleted" in options:
        lines += [{"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}}]
        lines += [{"add": {**add, "deletionVector": vector([1])}}]
    log(where, 1).write_text("\n".join(map(json.dumps, lines)))
    wanted = {"mode": "column mapping", "features": "rowIdsOfTheFuture", "deleted": "deletion vectors"}
    with pytest.raises(UserError, match=f"^{where}: .*{wanted[next(iter(options))]}"):
        find_inputs(str(where))
    assert len(find_inputs(str(where), version=0).inputs) == 1


def test_features_of_spark_that_change_nothing_for_readers(tmp_path):
    """Liquid clustering, row tracking, change data and such are for writers; others have no effect here."""
    where = tmp_path / "t"
    deltalake.write_deltalake(where, rows(["a", "b"]))
    writers = ["clustering", "domainMetadata", "rowTracking", "inCommitTimestamp", "changeDataFeed", "appendOnly"]
    readers = ["timestampNtz", "v2Checkpoint", "deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers}
    domain = {"domain": "delta.clustering", "configuration": '{"clusteringColumns":[["lang"]]}', "removed": False}
    lines = [{"protocol": {**protocol, "writerFeatures": [*writers, *readers]}}, {"domainMetadata": domain}]
    log(where, 1).write_text("\n".join(map(json.dumps, lines)))
    assert read(where, NAMES) == counted(rows(["a", "b"]).to_pylist())


def test_a_checkpoint_of_the_second_version(tmp_path):
    """As Spark writes it with `delta.checkpointPolicy: v2`; the log before it is gone."""
    where = tmp_path / "t"
    deltalake.write_deltalake(where, rows(["a", "b"]))
    deltalake.write_deltalake(where, rows(["c"]), mode="append")
    actions = [json.loads(line) for number in (0, 1) for line in log(where, number).read_text().splitlines()]
    features = ["v2Checkpoint"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    lines = [
        {"checkpointMetadata": {"version": 1}},
        {"protocol": protocol},
        *(action for action in actions if action.keys() & {"metaData", "add"}),
    ]
    name = "00000000000000000001.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json"
    (where / "_delta_log" / name).write_text("\n".join(map(json.dumps, lines)))
    (where / "_delta_log" / "_last_checkpoint").write_text(json.dumps({"version": 1, "size": len(lines)}))
    log(where, 0).unlink()
    assert read(where, NAMES) == counted(pa.concat_tables([rows(["a", "b"]), rows(["c"])]).to_pylist())


def vector(removed):
    """A deletion vector that is in the log itself: a bitmap of 64 bits of which the upper half is zero, in Z85."""
    pyroaring = pytest.importorskip("pyroaring")
    data = struct.pack("<i", 1681511377) + pyroaring.BitMap64(removed).serialize()
    alphabet = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    ours = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    text = base64.b85encode(data + b"\0" * (-len(data) % 4)).translate(bytes.maketrans(ours, alphabet)).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(removed)}


def test_mistakes_are_one_line(table, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be read at version 99: .+"):
        find_inputs(str(table), version=99)
    with pytest.raises(UserError, match=r"column 'body' is not in the Delta table; it has: text, n, lang"):
        find_inputs(str(table), columns=columns_of(["body"], "body"))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"is no table, so it has no versions"):
        find_inputs(str(tmp_path / "a.parquet"), version=1)
    with pytest.raises(UserError, match=r"is that of one table"):
        find_inputs([str(table), str(tmp_path / "a.parquet")], version=1)
    deltalake.DeltaTable(table).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(UserError, match=rf"a file of {table}@1, is not there any more"):
        find_inputs(str(table), version=1)
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(UserError, match=r"is a table of Delta, and .*pip install 'xlmr-ray\[delta\]'"):
        find_inputs(str(table))
