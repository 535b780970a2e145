"""Iceberg tables at a snapshot: what comes is what pyiceberg reads of it, in any order."""

import datetime
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.lake.reading import columns_of, counted, read, tables_of
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.errors import UserError

pytest.importorskip("pyiceberg")
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import IntegerType, LongType, StringType

NAMES = ["text", "lang", "day", "n"]


def rows(texts, lang="de", n=1):
    count = len(texts)
    return pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "lang": pa.array([lang] * count, pa.string()),
            "day": pa.array([datetime.date(2024, 2, 29)] * count, pa.date32()),
            "n": pa.array([n] * count, pa.int32()),
        }
    )


def catalog_at(folder, **more):
    return SqlCatalog("here", uri="sqlite://", warehouse=str(folder), **more)


@pytest.fixture
def catalog(tmp_path):
    catalog = catalog_at(f"file://{tmp_path}/lake")
    catalog.create_namespace("web")
    return catalog


@pytest.fixture
def table(catalog):
    """Three snapshots: two files in two partitions; one file more; rows of a file removed, which writes it anew."""
    table = catalog.create_table("web.pages", rows([]).schema)
    with table.update_spec() as spec:
        spec.add_field("lang", IdentityTransform())
    table.append(pa.concat_tables([rows(["a", "b"]), rows(["c"], "x y/ö%")]))
    table.append(rows(["d"], None))
    table.delete("text = 'a'")
    return table


def of_library(location, names, snapshot=None):
    return counted(StaticTable.from_metadata(location).scan(snapshot_id=snapshot).to_arrow().select(names).to_pylist())


def test_every_snapshot_as_the_library_reads_it(table):
    where = table.metadata_location
    for snapshot in [None, *(one.snapshot_id for one in table.snapshots())]:
        assert read(where, NAMES, snapshot) == of_library(where, NAMES, snapshot)
    assert read(where, NAMES) != read(where, NAMES, table.snapshots()[0].snapshot_id)
    (version,) = {one.table for one in find_inputs(where).inputs}
    assert version == f"{where.removeprefix('file://')}@{table.current_snapshot().snapshot_id}"


def test_types_that_were_widened_and_columns_that_came_later(table):
    with table.update_schema() as update:
        update.update_column("n", LongType())
        update.add_column("extra", IntegerType())
    more = rows(["e"]).set_column(3, "n", pa.array([1 << 40])).append_column("extra", pa.array([7], pa.int32()))
    table.append(more)
    where, names = table.metadata_location, [*NAMES, "extra"]
    assert read(where, names) == of_library(where, names)
    assert {part.schema.field("n").type for part in tables_of(where, names)} == {pa.int64()}
    before = table.snapshots()[0].snapshot_id
    with pytest.raises(UserError, match="column 'extra' is not in the Iceberg table; it has: text, lang, day, n"):
        find_inputs(where, version=before, columns=columns_of(names))


def test_a_column_by_whose_values_files_were_added_need_not_be_in_them(catalog, tmp_path):
    table = catalog.create_table("web.added", rows([]).schema)
    path = tmp_path / "lang=fr" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(rows(["a"]).drop(["day"]), path)
    table.add_files([str(path)])
    names = ["text", "lang", "day"]
    assert read(table.metadata_location, names) == of_library(table.metadata_location, names)


def test_a_folder_is_read_at_the_version_of_its_hint(table, tmp_path):
    folder = table.location().removeprefix("file://")
    newest = table.metadata_location.rpartition("/")[2]
    with pytest.raises(UserError, match=f"known to its catalog only; name the metadata file .*{newest}"):
        find_inputs(folder)
    (tmp_path / "x").mkdir()
    hint = f"{folder}/metadata/version-hint.text"
    for content in (newest, newest.removesuffix(".metadata.json")):
        with open(hint, "w") as file:  # noqa: PTH123
            file.write(content)
        assert read(folder, NAMES) == of_library(table.metadata_location, NAMES)


def test_in_a_bucket(seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    folder = seaweed.new_folder()
    store = {"s3.endpoint": seaweed.endpoint, "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}
    catalog = catalog_at(folder, **store)
    catalog.create_namespace("web")
    table = catalog.create_table("web.pages", rows([]).schema)
    table.append(rows(["a", "b"]))
    table.append(rows(["c"], None))
    own = StaticTable.from_metadata(table.metadata_location, store).scan().to_arrow()
    assert read(table.metadata_location, NAMES) == counted(own.to_pylist())


def with_metadata(table, change):
    """Another metadata file beside the table's own, changed."""
    path = table.metadata_location.removeprefix("file://")
    with open(path) as file:  # noqa: PTH123
        content = json.load(file)
    change(content)
    other = path.replace(".metadata.json", "-changed.metadata.json")
    with open(other, "w") as file:  # noqa: PTH123
        json.dump(content, file)
    return other


def renamed(table):
    with table.update_schema() as update:
        update.rename_column("n", "number")
    with table.update_schema() as update:
        update.add_column("n", IntegerType())


def made_anew(table):
    with table.update_schema() as update:
        update.delete_column("n")
    with table.update_schema() as update:
        update.add_column("n", StringType())


@pytest.mark.parametrize("change", [renamed, made_anew])
def test_a_name_that_means_other_columns_in_older_files_is_refused(table, change):
    change(table)
    with pytest.raises(UserError, match="column 'n' of the Iceberg table was renamed, or made anew"):
        find_inputs(table.metadata_location, columns=columns_of(NAMES))
    assert find_inputs(table.metadata_location, columns=columns_of(["text", "lang"])).inputs


def test_delete_files_are_refused(table, monkeypatch):
    # pyiceberg writes none: what other engines left is seen in its own plan of the scan.
    from pyiceberg.table import DataScan

    plan = DataScan.plan_files

    def with_deletes(scan):
        (first, *rest) = plan(scan)
        first.delete_files = {first.file}
        return [first, *rest]

    monkeypatch.setattr(DataScan, "plan_files", with_deletes)
    with pytest.raises(UserError, match=r"has delete files.*\(rewrite_data_files\)"):
        find_inputs(table.metadata_location)


def test_mistakes_are_one_line(table, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"is an Iceberg table without snapshot 5; it has: \d+, \d+"):
        find_inputs(table.metadata_location, version=5)
    broken = tmp_path / "v1.metadata.json"
    broken.write_text("{}")
    with pytest.raises(UserError, match=f"^{broken}: the Iceberg table cannot be read: .+"):
        find_inputs(str(broken))
    monkeypatch.setitem(sys.modules, "pyiceberg.table", None)
    with pytest.raises(UserError, match=r"is a table of Iceberg, and .*pip install 'xlmr-ray\[iceberg\]'"):
        find_inputs(table.metadata_location)
