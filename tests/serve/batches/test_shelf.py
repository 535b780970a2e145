"""Chunks of batches among replicas, each with a shelf of the same folder."""

import io
import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from xlmr_ray.batch.store.local import LocalStore
from xlmr_ray.errors import UserError
from xlmr_ray.serve.batches.shelf import ABANDONED_S, CLAIM_S, Answered, Shelf, check_shelf, request_of
from xlmr_ray.serve.requests import NotFound, TooLarge
from xlmr_ray.serve.settings import LimitsSection, ServeSettings

ENDPOINT = "/v1/embeddings"


def shelf(folder: Path) -> Shelf:
    return Shelf(LocalStore(str(folder)), most_lines=1000)


def batch_of(one: Shelf, lines: int) -> str:
    requests = [
        {"custom_id": str(n), "method": "POST", "url": ENDPOINT, "body": {"input": str(n)}} for n in range(lines)
    ]
    content = io.BytesIO("\n".join(map(json.dumps, requests)).encode())
    file = one.add_file(content, "a.jsonl", "batch")
    assert b"".join(one.content(file["id"])) == content.getvalue()
    assert file["bytes"] == len(content.getvalue())
    return str(one.add_batch(ENDPOINT, file["id"], "24h", None, LimitsSection())["id"])


def test_a_chunk_has_one_replica(tmp_path: Path) -> None:
    one, other = shelf(tmp_path), shelf(tmp_path)
    name = batch_of(one, 100)
    assert (one.claim(name), other.claim(name), one.claim(name)) == (0, 1, None)
    one.release(name, 0)
    assert other.claim(name) == 0


def test_a_dead_replicas_chunk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its clock was an hour ahead, and never while it is renewed."""
    one, other = shelf(tmp_path), shelf(tmp_path)
    name = batch_of(one, 1)
    now, ahead = time.monotonic(), time.time() + 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: ahead)
        assert one.claim(name) == 0
    for seconds in (0, CLAIM_S - 1):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert other.claim(name) is None
    one.renew(name, 0)
    monkeypatch.setattr(time, "monotonic", lambda: now + CLAIM_S + 1)
    assert other.claim(name) is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * CLAIM_S + 2)
    assert other.claim(name) == 0
    assert one.claim(name) is None


def test_the_newest_batch_is_listed_first(tmp_path: Path) -> None:
    """Also before those whose ids, from before, do not say when they were made."""
    one = shelf(tmp_path)
    for name in ("batch_ffffffffffffffffffffffff", "batch_000000000000000000000000"):
        one.write(f"batches/{name}/batch.json", {})
    new = {batch_of(one, 1), batch_of(one, 1)}
    assert set(one.batch_names()[:2]) == new


def test_two_that_go_on_leave_one_answer(tmp_path: Path) -> None:
    one, other = shelf(tmp_path), shelf(tmp_path)
    name = batch_of(one, 2)
    one.put_answers(name, 0, Answered(["first", "first"], []))
    other.put_answers(name, 0, Answered(["second"], ["second"]))
    assert one.finish(name)
    assert other.finish(name)
    done = other.batch(name)
    assert (done["status"], done["request_counts"]["completed"], done["error_file_id"]) == ("completed", 2, None)
    assert b"".join(other.content(done["output_file_id"])) == b"first\nfirst\n"
    assert not one.open()


def test_nothing_is_kept_of_a_batch_that_another_replica_ended(tmp_path: Path) -> None:
    one, other = shelf(tmp_path), shelf(tmp_path)
    name = batch_of(one, 100)
    assert (one.claim(name), other.claim(name), other.claim(name)) == (0, 1, None)
    one.put_answers(name, 0, Answered(["a"] * 64, []))
    assert other.batch(name)["request_counts"]["completed"] == 64
    assert (other.counts.keys(), other.seen.keys()) == ({name}, {name})
    one.put_answers(name, 1, Answered(["a"] * 36, []))
    assert one.finish(name)
    assert other.open() == one.open() == []
    assert (one.counts, one.seen, other.counts, other.seen) == ({}, {}, {}, {})


@pytest.mark.parametrize("name", ["../batches", "a/b", "", "a.json", "é", "a" * 300])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    for look in (shelf(tmp_path).file, shelf(tmp_path).content, shelf(tmp_path).batch, shelf(tmp_path).delete_file):
        with pytest.raises(NotFound, match="no file or batch"):
            look(name)


@pytest.mark.parametrize("written", range(5))
def test_a_death_while_a_batch_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """After so many of its four writes: it is there and will be computed, or it is not there at all."""
    one, write, left = shelf(tmp_path), Shelf.write, [written]

    def dying(self: Shelf, key: str, value: object) -> None:
        if not key.startswith("files/"):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        write(self, key, value)

    monkeypatch.setattr(Shelf, "write", dying)
    with suppress(KeyboardInterrupt):
        batch_of(one, 100)
    there = [name for name in one.batch_names() if one.is_there(name)]
    assert there == one.open()
    assert len(there) == (written == 4)
    assert len(list(one.store.list("open/"))) == (written > 0)
    later = time.time() + ABANDONED_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert there == one.open()
    assert len(list(one.store.list("open/"))) == len(there)


def test_a_line_that_is_too_long_is_not_read() -> None:
    """As a body: to read a hundred megabytes would keep others waiting. With escapes it may be longer than a body."""
    request = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {"input": "права " * 20_000}}
    limits = LimitsSection(body_bytes=len(json.dumps(request["body"], ensure_ascii=False).encode()))
    line = json.dumps(request).encode()
    assert len(line) > 2 * limits.body_bytes
    assert request_of(line, ENDPOINT, limits).body == request["body"]
    with pytest.raises(TooLarge, match="the line has more than"):
        request_of(line + b" " * 200_000, ENDPOINT, limits)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Is said in one line before anything starts."""
    (tmp_path / "file").write_text("")
    for folder, message in (
        (str(tmp_path / "file" / "batches"), "batches.folder: .*cannot be written"),
        ("nothing://there", "batches.folder: .*no file system for nothing://"),
    ):
        settings = {"models": ["embedded:mini"], "batches": {"folder": folder}}
        with pytest.raises(UserError, match=message) as refused:
            check_shelf(ServeSettings.model_validate(settings))
        assert "\n" not in str(refused.value)
    check_shelf(ServeSettings.model_validate({"models": ["embedded:mini"]}))
    check_shelf(ServeSettings.model_validate({"models": ["embedded:mini"], "batches": {"folder": "memory://batches"}}))
