"""Links, several paths to one file, and names that no plan can hold."""

import os
from pathlib import Path

import pytest

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.errors import UserError

COLUMNS = Columns(text={"text": "text"})


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))


def read(*paths, root):
    """Every row of the inputs: {(path below root, row): text}; and the dead letters' codes."""
    found = find_inputs([str(path) for path in paths])
    rows, dead = {}, {}
    for piece in plan_shards(found.inputs, shard_rows=100, columns=COLUMNS):
        if isinstance(piece, DeadLetter):
            dead[os.path.relpath(piece.key, root)] = piece.code
            continue
        for row in read_shard(piece, COLUMNS).to_pylist():
            key = (os.path.relpath(piece.input.key, root), row["_row"])
            assert key not in rows
            rows[key] = row["text"]
    return rows, dead


def test_linked_files_and_folders_are_read(tmp_path):
    lines(tmp_path / "in" / "a.jsonl", "a0", "a1")
    lines(tmp_path / "elsewhere" / "b.jsonl", "b0", "b1", "b2")
    lines(tmp_path / "other" / "deep" / "c.jsonl", "c0", "c1", "c2", "c3")
    (tmp_path / "in" / "b.jsonl").symlink_to("../elsewhere/b.jsonl")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "other")
    rows, dead = read(tmp_path / "in", root=tmp_path / "in")
    assert sorted(rows.values()) == ["a0", "a1", "b0", "b1", "b2", "c0", "c1", "c2", "c3"]
    assert {name for name, _ in rows} == {"a.jsonl", "b.jsonl", "more/deep/c.jsonl"}
    assert not dead
    for pattern in ("**/*.jsonl", "*", "**"):
        assert read(tmp_path / "in" / pattern, root=tmp_path / "in") == (rows, {})
    linked, _ = read(tmp_path / "in" / "*" / "deep" / "?.jsonl", root=tmp_path / "in")
    assert sorted(linked.values()) == ["c0", "c1", "c2", "c3"]
    named, _ = read(tmp_path / "in" / "b.jsonl", root=tmp_path / "in")
    assert sorted(named.values()) == ["b0", "b1", "b2"]


def test_a_folder_of_links_only_as_the_hubs_cache_is(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "data"
    lines(blobs / "e3b0c442", "x", "y")
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../../blobs/e3b0c442")
    (snapshot / "test.jsonl").symlink_to("../../../blobs/e3b0c442")  # two files of one content share a blob
    wanted = {("train.jsonl", 0): "x", ("train.jsonl", 1): "y", ("test.jsonl", 0): "x", ("test.jsonl", 1): "y"}
    assert read(tmp_path / "snapshots" / "abc", root=snapshot) == (wanted, {})
    assert read(snapshot / "*.jsonl", root=snapshot) == (wanted, {})


def test_loops_are_walked_once(tmp_path):
    lines(tmp_path / "in" / "a.jsonl", "a0")
    lines(tmp_path / "in" / "deep" / "b.jsonl", "b0")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to(".")
    (tmp_path / "in" / "again").symlink_to("deep")
    wanted = {("a.jsonl", 0): "a0", ("deep/b.jsonl", 0): "b0"}
    for path in ("", "*", "**", "**/*.jsonl"):
        assert read(tmp_path / "in" / path, root=tmp_path / "in") == (wanted, {}), path


def test_two_paths_to_one_file_are_one_input(tmp_path, monkeypatch):
    lines(tmp_path / "in" / "a.jsonl", "a0")
    (tmp_path / "o").mkdir()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    wanted = ({("a.jsonl", 0): "a0"}, {})
    for paths in (["in", "o/../in"], ["o/../in", "in"], ["link", "in"], ["link/a.jsonl", "in/*"], ["o/../in/a.jsonl"]):
        assert read(*paths, root=tmp_path / "in") == wanted, paths
    only = find_inputs("link").inputs
    assert [one.key for one in only] == [str(tmp_path / "link" / "a.jsonl")]  # as the user named it


def test_a_change_of_a_links_target_is_seen(tmp_path):
    lines(tmp_path / "target.jsonl", "old")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").symlink_to("../target.jsonl")
    (one,) = find_inputs(str(tmp_path / "in")).inputs
    assert one.size == (tmp_path / "target.jsonl").stat().st_size
    Source(one).check()
    lines(tmp_path / "target.jsonl", "new and longer")
    with pytest.raises(Exception, match="changed since the job was planned"):
        Source(one).check()


def test_a_link_to_nothing_is_a_dead_letter_and_a_folder_that_cannot_be_listed_no_empty_one(tmp_path):
    lines(tmp_path / "in" / "a.jsonl", "a0")
    (tmp_path / "in" / "gone.jsonl").symlink_to("nowhere.jsonl")
    assert read(tmp_path / "in", root=tmp_path / "in") == ({("a.jsonl", 0): "a0"}, {"gone.jsonl": "file_gone"})


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    lines(tmp_path / "in" / "shut" / "a.jsonl", "a0")
    real = os.scandir

    def refused(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        find_inputs(str(tmp_path / "in"))


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    lines(tmp_path / "in" / "a.jsonl", "a0")
    bad = os.fsencode(tmp_path / "in") + b"/caf\xe9.jsonl"
    Path(os.fsdecode(bad)).write_bytes(b'{"text": "x"}\n')
    for path in (str(tmp_path / "in"), f"{tmp_path}/in/*.jsonl", os.fsdecode(bad)):
        with pytest.raises(UserError, match=r"caf\\xe9\.jsonl: the name is not UTF-8; rename it") as error:
            find_inputs(path)
        str(error.value).encode()
    Path(os.fsdecode(bad)).rename(os.fsdecode(bad[:-6] + b".md"))
    assert find_inputs(str(tmp_path / "in")).ignored == [f"{tmp_path}/in/caf\\xe9.md"]


def test_no_such_user(tmp_path):
    with pytest.raises(UserError, match=r"~nosuchuser/in: no user nosuchuser here"):
        find_inputs("~nosuchuser/in")


def test_a_version_of_an_object_is_not_taken_for_a_pattern(seaweed):
    with pytest.raises(UserError, match=r"versions of an object are not read"):
        find_inputs("s3://tests/nowhere/a.jsonl?versionId=abc", options=seaweed.options)
