"""What cannot be read counts with all the rows that it held: in the plan, in `max_fraction`, in the manifest, in status
and report.
"""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.direct import job_of, rows_of, run_directly
from tests.models import save_classifier
from xlmr_ray.batch import codes
from xlmr_ray.batch.done import earlier
from xlmr_ray.batch.ledger.manifest import read_manifest
from xlmr_ray.batch.ledger.status import status
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.score import TooManyErrors
from xlmr_ray.batch.store.open import open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def plan_of(model, folder, **more):
    return prepare_run(
        job_of(model, folder, folder.parent / "out", **more), open_store(str(folder.parent / "out"))
    ).plan


def table(count, **more):
    return pa.table({"text": [f"document {n}" for n in range(count)], **more})


def noise(count):
    """Lines that do not compress to nothing."""
    made = random.Random(1)
    return [{"text": f"{made.getrandbits(200):x}"} for _ in range(count)]


@pytest.mark.parametrize("wrong", ["no such column", "a column of integers", "an extension type"])
def test_a_parquet_file_is_counted_by_its_footer(model, folder, wrong):
    pq.write_table(table(60), folder / "a.parquet")
    bad = {
        "no such column": pa.table({"body": ["a"] * 30}),
        "a column of integers": pa.table({"text": list(range(30))}),
        "an extension type": table(30, other=pa.ExtensionArray.from_storage(Odd(), pa.array(["x"] * 30))),
    }[wrong]
    pq.write_table(bad, folder / "b.parquet", row_group_size=7)
    plan = plan_of(model, folder)
    (dead,) = plan.dead
    assert (dead.rows, dead.estimated, plan.rows) == (30, False, 90)
    assert dead.message.endswith("(30 rows lost)")


class Odd(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.string(), "test.odd")

    def __arrow_ext_serialize__(self):
        return b""


@pytest.mark.parametrize("kind", ["footer", "encrypted", "a zip archive"])
def test_a_file_that_tells_nothing_is_estimated_by_the_others(model, folder, kind):
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(noise(300)), folder / f"{name}.parquet")
    whole = (folder / "b.parquet").read_bytes()
    damaged = {"footer": whole[:-1000], "encrypted": whole[:-4] + b"PARE", "a zip archive": b"PK\3\4" + whole[4:-4]}
    (folder / "b.parquet").write_bytes(damaged[kind])
    plan = plan_of(model, folder)
    (dead,) = plan.dead
    assert dead.estimated
    assert dead.rows == pytest.approx(300, rel=0.1)
    assert "rows lost, an estimate)" in dead.message
    assert plan_of(model, folder).dead == plan.dead  # as it was written


def test_the_rest_of_a_damaged_stream_is_estimated_by_its_start(model, folder):
    lines = [json.dumps(one) + "\n" for one in noise(5000)]
    halves = [gzip.compress("".join(part).encode()) for part in (lines[:2500], lines[2500:])]
    packed = halves[0] + b"damage" + halves[1]
    (folder / "a.jsonl.gz").write_bytes(packed)
    plan = plan_of(model, folder)
    (dead,) = plan.dead
    assert dead.code == codes.CORRUPT_STREAM
    assert plan.rows == pytest.approx(5000, rel=0.25)
    assert plan.shards.rows == 2500


def test_an_empty_file_counts_as_one(model, folder):
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 10)
    (folder / "b.jsonl").touch()
    plan = plan_of(model, folder)
    assert [dead.rows for dead in plan.dead] == [1]
    assert plan.rows == 11


def rows_with_an_open_quote(place):
    lines = [f'{n},"a text, of two\nlines {n}",en' for n in range(1000)]
    lines[place] = f'{place},"a text that is not closed,en'
    return lines


@pytest.mark.parametrize("place", [0, 500, 849, 999])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "quoted"])
def test_lines_that_an_open_quote_swallows_are_lost_rows(model, folder, place, plain):
    lines = rows_with_an_open_quote(place)
    if plain:  # no quote follows that could close it
        lines = [line if n == place else f"{n},a text {n},en" for n, line in enumerate(lines)]
    (folder / "a.csv").write_text("id,text,lang\n" + "\n".join(lines) + "\n")
    plan = plan_of(model, folder, id="id")
    swallowed = 999 - place if plain else min(999 - place, 1)
    if swallowed:
        (dead,) = plan.dead
        assert (dead.code, dead.estimated) == (codes.SWALLOWED_LINES, swallowed > 1)
        assert f"the first is record {place + 1}:" in dead.message
        assert dead.rows == swallowed
    assert plan.rows in ((1000,) if plain else (1000, 1001))  # the rest of the row that closed it is a record, too


def test_max_fraction_sees_them(model, folder):
    lines = [f"{n},text {n}" for n in range(1000)]
    lines[849] = '849,"text'
    (folder / "a.csv").write_text("id,text\n" + "\n".join(lines) + "\n")
    with pytest.raises(TooManyErrors, match=r"150 of 1,000 rows are errors \(15.0%\)"):
        run_directly(job_of(model, folder, folder.parent / "out", max_fraction=0.1))


def test_everybody_counts_them(model, folder):
    pq.write_table(table(60), folder / "a.parquet")
    pq.write_table(pa.table({"body": ["a"] * 30}), folder / "b.parquet")
    out = folder.parent / "out"
    job = job_of(model, folder, out)
    with pytest.raises(TooManyErrors, match="30 of 90 rows"):
        run_directly(job_of(model, folder, out, max_fraction=0.3))
    store = open_store(str(out))
    prepared = prepare_run(job, store)
    (begun,) = status(store)
    assert (begun.rows, begun.rows_done, begun.rows_error, begun.rows_lost) == (90, 30, 1, 29)
    figures = Figures(90, 3)
    earlier(store, prepared.plan, figures)
    assert (figures.rows_before, figures.errors_before) == (30, 30)

    manifest = run_directly(job)
    assert (manifest.rows_in, manifest.rows_ok, manifest.rows_error, manifest.rows_lost) == (61, 60, 1, 29)
    assert read_manifest(store, manifest.run_id) == manifest
    assert not manifest.lost_estimated
    assert verify(store).ok
    (done,) = status(store)
    assert (done.rows, done.rows_done, done.rows_error, done.rows_lost) == (90, 90, 1, 29)
    report = gather_report(store)
    assert (report.rows, report.rows_error, report.rows_lost) == (61, 1, 29)
    (error,) = rows_of(out, errors=True)
    assert (error["row"], error["code"]) == (-1, codes.MISSING_COLUMN)
