"""What is not read is said: by the plan, the manifest, the status, the report and the summary; and tables of other
formats, whose folders hold rows that were removed, are refused.
"""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.batch.direct import job_of, run_directly
from xlmr_ray import UserError
from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.ledger.manifest import NotRead, manifest_key, read_manifest
from xlmr_ray.batch.ledger.status import status
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.printing import print_status
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.observe.report.page import report_page
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.store.filesystem import filesystem
from xlmr_ray.batch.store.open import open_store


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n')
    return tmp_path / "in"


def test_everybody_names_them(folder, tmp_path, capsys):
    for number in range(30):
        (folder / f"{number:02}.jsonl.bz2").write_bytes(b"BZh9")
    out, job = tmp_path / "out", job_of("embedded:mini", folder, tmp_path / "out")
    store = open_store(str(out))
    prepare_run(job, store)
    wanted = NotRead(30, tuple(str(folder / f"{number:02}.jsonl.bz2") for number in range(20)))
    (begun,) = status(store)
    assert begun.not_read == wanted
    manifest = run_directly(job)
    assert manifest.not_read == wanted
    assert read_manifest(store, manifest.run_id) == manifest
    assert verify(store).ok
    (done,) = status(store)
    assert done.not_read == wanted
    print_status(store, Console(width=1000))
    told = f"not read, no known ending: {', '.join(wanted.some[:3])} and 27 more"
    assert told in capsys.readouterr().out
    report = gather_report(store)
    assert report.not_read == wanted
    assert "files not read" in report_page(report)


def test_nothing_is_said_of_nothing(folder, tmp_path):
    manifest = run_directly(job_of("embedded:mini", folder, tmp_path / "out"))
    assert manifest.not_read is None
    store = open_store(str(tmp_path / "out"))
    for name in ("not_read", "rows_lost", "lost_estimated", "kept"):
        assert f'"{name}"' not in store.get(manifest_key(manifest.run_id))[0].decode()
        assert f'"{name}"' not in store.get(f"_runs/{manifest.run_id}/plan.json")[0].decode()


@pytest.mark.parametrize("ending", ["parquet.gzip", "parquet.gz", "pq.zst", "parquet.zstd"])
@pytest.mark.parametrize("named", [True, False])
def test_parquet_that_is_called_compressed(tmp_path, ending, named):
    """As pandas' users call it; one that is compressed as a whole is said to be."""
    columns = Columns({"text": "text"})
    path = tmp_path / f"a.{ending}"
    pq.write_table(pa.table({"text": ["a"]}), path, compression="gzip")
    for format in ("auto", "parquet"):
        (one,) = find_inputs(str(path if named else tmp_path), format=format).inputs
        assert (one.format, one.compression) == ("parquet", "")
    (shard,) = plan_shards([one], shard_rows=9, columns=columns)
    assert shard.rows == 1
    path.write_bytes(gzip.compress(path.read_bytes()))
    (dead,) = plan_shards(find_inputs(str(tmp_path)).inputs, shard_rows=9, columns=columns)
    assert dead.code == codes.WRONG_FORMAT
    assert "unpack it" in dead.message


def test_a_format_that_is_given_holds_for_a_named_file(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.gz")
    (one,) = find_inputs(str(tmp_path / "a.gz"), format="parquet").inputs
    assert (one.format, one.compression) == ("parquet", "")


TABLES = {
    "Delta": ["_delta_log/00000000000000000000.json", "part-0.parquet", "lang=de/part-1.parquet"],
    "Hudi": [".hoodie/hoodie.properties", "part-0.parquet"],
    "Iceberg": ["metadata/v1.metadata.json", "data/part-0.parquet"],
}


def files_of(format):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"]}), sink)
    return {name: b"{}" if name.endswith(("json", "properties")) else sink.getvalue() for name in TABLES[format]}


@pytest.mark.parametrize("format", TABLES)
@pytest.mark.parametrize("above", ["", "deep/er/"])
def test_a_table_is_named_and_not_read(tmp_path, format, above):
    for name, data in files_of(format).items():
        path = tmp_path / "in" / above / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(data))
    table = f"{tmp_path}/in/{above}".rstrip("/")
    paths = [f"{tmp_path}/in", f"{tmp_path}/in/**/*.parquet", *([f"{table}/*.parquet"] if format != "Iceberg" else [])]
    if not above and format != "Hudi":
        del paths[0]  # read as the table that it is
    for path in paths:
        with pytest.raises(UserError, match=f"^{table}: is a {format} table, whose folder holds files of older"):
            find_inputs(path)
    part = {"Delta": "lang=de", "Iceberg": "data", "Hudi": "."}[format]
    for path in (f"{table}/{part}", f"{table}/{part}/*.parquet"):
        with pytest.raises(UserError, match=f"^{table}: is a {format} table"):
            find_inputs(path)
    named = [str(path) for path in (tmp_path / "in").rglob("*.parquet")]
    assert len(find_inputs(named).inputs) == len(named)


@pytest.mark.parametrize("format", TABLES)
def test_a_table_in_a_bucket(seaweed, format):
    folder = seaweed.new_folder()
    fs, where = filesystem(folder, options=seaweed.options)
    for name, data in files_of(format).items():
        fs.pipe_file(f"{where}/in/{name}", bytes(data))
    with pytest.raises(UserError, match=f"in: is a {format} table"):
        find_inputs(folder, options=seaweed.options)
    if format == "Delta":
        with pytest.raises(UserError, match="in: is a Delta table"):
            find_inputs(f"{folder}/in/*.parquet", options=seaweed.options)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_lance_table_is_named_with_the_way_to_read_it(request, tmp_path, place):
    folder, options = str(tmp_path), None
    if place == "bucket":
        seaweed = request.getfixturevalue("seaweed")
        folder, options = seaweed.new_folder(), seaweed.options
    fs, where = filesystem(folder, options=options)
    for name in ("_versions/1.manifest", "_transactions/0-a.txn", "data/a.lance"):
        fs.makedirs(f"{where}/in/t.lance/{name.partition('/')[0]}", exist_ok=True)
        fs.pipe_file(f"{where}/in/t.lance/{name}", b"x")
    for path in (f"{folder}/in", f"{folder}/in/t.lance"):
        with pytest.raises(UserError, match=r"in/t\.lance: is a Lance table, .*write_dataset\(lance\.dataset\("):
            find_inputs(path, options=options)


@pytest.mark.parametrize("place", ["disk", "bucket"])
@pytest.mark.parametrize("saved", [True, False])
def test_a_dataset_in_arrow_files_is_named_with_the_way_to_read_it(request, tmp_path, place, saved):
    """As `save_to_disk` of Hugging Face's datasets leaves it, and as its cache has it; not what its JSON files say."""
    folder, options = str(tmp_path), None
    if place == "bucket":
        seaweed = request.getfixturevalue("seaweed")
        folder, options = seaweed.new_folder(), seaweed.options
    fs, where = filesystem(folder, options=options)
    fs.makedirs(f"{where}/in/train", exist_ok=True)
    for name in (
        "train/data-00000-of-00001.arrow",
        "train/dataset_info.json",
        *(["train/state.json"] if saved else []),
    ):
        fs.pipe_file(f"{where}/in/{name}", b"{}")
    way = r"load_from_disk\(\".*/in/train\"\)" if saved else r"Dataset\.from_file\(ARROW_FILE\)"
    for path in (f"{folder}/in", f"{folder}/in/train"):
        with pytest.raises(UserError, match=rf"in/train: is a dataset in Arrow files, .*datasets\.{way}\.to_parquet"):
            find_inputs(path, options=options)
    fs.rm_file(f"{where}/in/train/data-00000-of-00001.arrow")
    assert find_inputs(f"{folder}/in", options=options).inputs  # JSON of somebody's own


def test_the_way_to_read_a_lance_table(tmp_path):
    lance = pytest.importorskip("lance", reason="pylance is of the extra `clients`")
    table = str(tmp_path / "t.lance")
    lance.write_dataset(pa.table({"text": ["a", "b", "c"]}), table)
    lance.dataset(table).delete("text = 'b'")
    for version, texts in ((1, ["a", "b", "c"]), (2, ["a", "c"])):
        with pytest.raises(UserError, match="is a Lance table") as refused:
            find_inputs(table)
        way = str(refused.value).partition("as Parquet: ")[2]
        out = str(tmp_path / f"exported-{version}")
        exec(f"import lance, pyarrow.dataset\n{way}", {"TABLE": table, "N": version, "FOLDER": out})
        assert pq.read_table(out)["text"].to_pylist() == texts
        assert len(find_inputs(out).inputs) == 1


def test_a_document_called_metadata_is_no_table(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "a.jsonl").write_text(json.dumps({"text": "a"}))
    assert len(find_inputs(str(tmp_path)).inputs) == 1
