"""A table that an older version published, with one more day begun and killed: this version verifies it, goes on where
the killed driver stopped, and extends it.

`tables/0.1.0` was made by that version (`tables/make.py`), on SeaweedFS: a run's name follows from its inputs' ETags,
which a bucket makes from the content and a disk does not.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

TABLE = Path(__file__).parent / "tables" / "0.1.0"
FOLDER = "tests/table-of-0.1.0"
PUBLISHED, KILLED = "3846e5b2cf3411dd", "fdb0e9d9bcfbdb5f"


@pytest.fixture(scope="module")
def bucket(seaweed):
    files = s3fs.S3FileSystem(
        key=seaweed.options["key"], secret=seaweed.options["secret"], endpoint_url=seaweed.endpoint
    )
    for path in (TABLE / "out").rglob("*.*"):
        # The killed driver is waited for by its lease: 2 seconds of it, not its 60.
        content = path.read_bytes().replace(b'"ttl":60.0', b'"ttl":2.0')
        files.pipe_file(f"{FOLDER}/out/{path.relative_to(TABLE / 'out')}", content)
    for day in ("day-1", "day-2"):
        for path in (TABLE / day).iterdir():
            files.pipe_file(f"{FOLDER}/in/{path.name}", path.read_bytes())
    yield files
    files.rm(FOLDER, recursive=True)


@pytest.fixture
def command(steps_here, call, seaweed, monkeypatch):
    """What a command prints."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)

    def run(*words):
        code, printed, said = call(*words)
        assert code == 0, said
        return printed + said

    return run


def rows(bucket, command):
    urls = command("files", f"s3://{FOLDER}/out").split()
    tables = [pq.read_table(pa.BufferReader(bucket.cat_file(url))) for url in urls]
    return {(one["source"].rpartition("/")[2], one["row"]): one for table in tables for one in table.to_pylist()}


def test_a_table_of_version_0_1_0(bucket, command):
    assert "verified" in command("verify", f"s3://{FOLDER}/out")
    before = rows(bucket, command)
    assert len(before) == 38

    said = command("run", str(TABLE / "job.yaml"), "--quiet")
    assert f"run {KILLED}" in said
    resumed = rows(bucket, command)
    assert {name: sum(key[0] == name for key in resumed) for name in ("a.parquet", "b.jsonl", "c.csv")} == {
        "a.parquet": 24,
        "b.jsonl": 12,
        "c.csv": 20,
    }
    assert {key: one for key, one in resumed.items() if key[0] == "a.parquet"} == {
        key: one for key, one in before.items() if key[0] == "a.parquet"
    }
    kept = {key.rpartition("/")[2] for key in bucket.ls(f"{FOLDER}/out/data/{KILLED}")}
    assert {path.name for path in (TABLE / "out" / "data" / KILLED).iterdir()} <= kept  # what was committed, stays

    assert "files of rows; 1 now" in command("compact", f"s3://{FOLDER}/out")
    assert rows(bucket, command) == resumed

    bucket.pipe_file(f"{FOLDER}/in/d.jsonl", (TABLE / "day-3" / "d.jsonl").read_bytes())
    command("run", str(TABLE / "job.yaml"), "--quiet")
    extended = rows(bucket, command)
    assert {key: one for key, one in extended.items() if key[0] != "d.jsonl"} == resumed
    assert len(extended) == len(resumed) + 10
    assert "verified" in command("verify", f"s3://{FOLDER}/out")
