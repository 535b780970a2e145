import os
from pathlib import Path

import botocore.exceptions
import pytest
from moto.server import ThreadedMotoServer

from xlmr_ray.batch.input.file import InputChanged, InputFile, check_unchanged
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.store.filesystem import filesystem, reading
from xlmr_ray.errors import JobFailed, UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x\n")


def names(root: Path, inputs: list[InputFile]) -> list[str]:
    return [os.path.relpath(one.key, root) for one in inputs]


def test_a_folder_is_read_recursively_and_what_is_not_read_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a/c.jsonl.gz", "a/d.CSV", "lang=en/e.txt.zst", "_part=1/f.tsv", "g.ndjson", "h.json")
    touch(tmp_path, "_SUCCESS", ".b.parquet.crc", "x.crc", "_metadata", ".hidden/i.txt", "_temporary/0/j.parquet")
    touch(tmp_path, "README.md", "k.parquet.gz", "l.bz2")
    found = find_inputs(str(tmp_path))
    assert {
        name: (one.format, one.compression)
        for name, one in zip(names(tmp_path, found.inputs), found.inputs, strict=True)
    } == {
        "_part=1/f.tsv": ("tsv", ""),
        "a/c.jsonl.gz": ("jsonl", "gzip"),
        "a/d.CSV": ("csv", ""),
        "b.parquet": ("parquet", ""),
        "g.ndjson": ("jsonl", ""),
        "h.json": ("jsonl", ""),
        "k.parquet.gz": ("parquet", ""),
        "lang=en/e.txt.zst": ("text", "zstd"),
    }
    assert found.inputs == sorted(found.inputs, key=lambda one: one.key)
    assert [os.path.relpath(key, tmp_path) for key in found.ignored] == ["README.md", "l.bz2"]
    assert all(one.size == 2 and one.etag for one in found.inputs)


def test_files_globs_and_lists_and_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.txt", "b.txt", "in/c.txt", "in/_no.txt", "z[1].txt")
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path, find_inputs("a.txt").inputs) == ["a.txt"]
    assert names(tmp_path, find_inputs("?.txt").inputs) == ["a.txt", "b.txt"]
    assert names(tmp_path, find_inputs(f"{tmp_path}/**/*.txt").inputs) == ["a.txt", "b.txt", "in/c.txt", "z[1].txt"]
    assert names(tmp_path, find_inputs(["b.txt", "in", f"file://{tmp_path}/a.txt", "*.txt"]).inputs) == [
        "a.txt",
        "b.txt",
        "in/c.txt",
        "z[1].txt",
    ]
    assert names(tmp_path, find_inputs("z[1].txt").inputs) == ["z[1].txt"]  # a file of that very name, no pattern
    assert names(tmp_path, find_inputs("in/_no.txt").inputs) == ["in/_no.txt"]  # named, so not hidden
    assert names(tmp_path, find_inputs("i*").inputs) == ["in/c.txt"]


def test_a_given_format_is_for_unknown_endings(tmp_path: Path) -> None:
    touch(tmp_path, "part-0", "part-1.gz", "c.parquet", "d.tsv")
    found = find_inputs(str(tmp_path), format="csv")
    assert [(os.path.relpath(one.key, tmp_path), one.format, one.compression) for one in found.inputs] == [
        ("d.tsv", "tsv", ""),
        ("part-0", "csv", ""),
        ("part-1.gz", "csv", "gzip"),
    ]
    assert names(tmp_path, find_inputs(str(tmp_path / "c.parquet"), format="jsonl").inputs) == ["c.parquet"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing", "missing: no such file or folder"),
        ("missing/*.txt", "nothing matches"),
        ("empty", "no file to read"),
        ("only", "README.md; looked for .parquet"),
        ("only/README.md", "the ending says no format"),
        ([], "an empty list"),
    ],
)
def test_nothing_to_read_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | list[str], says: str
) -> None:
    touch(tmp_path, "only/README.md", "empty/_SUCCESS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_inputs(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'orc' is no format"):
        find_inputs(str(tmp_path), format="orc")


def test_a_permission_error_is_not_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.txt")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr(type(filesystem(str(tmp_path))[0]), "info", refuse)
    with pytest.raises(PermissionError):
        find_inputs(str(tmp_path / "a.txt"))


def test_a_change_is_seen(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    (one,) = find_inputs(str(tmp_path)).inputs
    fs, path = filesystem(one.key)
    check_unchanged(one, fs.info(path))
    (tmp_path / "a.txt").write_bytes(b"y\n")
    os.utime(tmp_path / "a.txt", (1, 1))
    with pytest.raises(InputChanged, match=r"a\.txt: changed since the job was planned"):
        check_unchanged(one, fs.info(path))
    with pytest.raises(InputChanged, match=r"a\.txt: deleted"):
        check_unchanged(one, None)


def test_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
        fs, _ = filesystem("s3://corpus", options=options)
        fs.mkdir("corpus")
        for name in ("in/a.jsonl", "in/deep/b.parquet", "in/_SUCCESS", "in/notes.md"):
            fs.pipe_file(f"corpus/{name}", b"{}\n")
        fs.pipe_file("corpus/in/", b"")
        found = find_inputs("s3://corpus/in/", options=options)
        assert [one.key for one in found.inputs] == ["s3://corpus/in/a.jsonl", "s3://corpus/in/deep/b.parquet"]
        assert found.ignored == ["s3://corpus/in/notes.md"]
        assert found.inputs == find_inputs("s3://corpus/in", options=options).inputs
        assert find_inputs("s3://corpus/in/*.jsonl", options=options).inputs == found.inputs[:1]
        assert find_inputs("s3://corpus/in/a.jsonl", options=options).inputs == found.inputs[:1]
        with pytest.raises(UserError, match="no such file or folder"):
            find_inputs("s3://corpus/nowhere/", options=options)
        with pytest.raises(UserError, match="no such file or folder"):
            find_inputs("s3://no-such-bucket/in/", options=options)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Forbidden"),
        TimeoutError(),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    ],
)
def test_a_store_that_does_not_answer_is_one_line_and_no_bad_data(error):
    with (
        pytest.raises(JobFailed, match=r"^s3://b/k: cannot be read: .+; run the job again to go on$"),
        reading("s3://b/k"),
    ):
        raise error


def test_a_defect_is_not_taken_for_the_stores_failure():
    with pytest.raises(KeyError), reading("s3://b/k"):
        raise KeyError("ours")
