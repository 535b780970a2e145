"""`xlmr-ray label` against a server: labels, what is no label, servers that are busy, calls that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from email.utils import formatdate

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from tests.train.judge.conftest import ROWS, TEXTS, labels, report
from xlmr_ray.batch.input.whole import iter_whole
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.errors import Interrupted
from xlmr_ray.text.progress_line import ProgressLine
from xlmr_ray.train.judge.ask import retry_after
from xlmr_ray.train.judge.job import JudgeSection, check_label_job
from xlmr_ray.train.judge.label import label
from xlmr_ray.train.judge.replies import question


def prompts(server) -> Counter:
    return Counter(one["messages"][-1]["content"] for one in server.asked)


def test_a_training_reads_the_labels(call, job, server, tmp_path, train, make_checkpoint):
    price = {"prompt": 1.0, "completion": 10.0}
    code, out, err = call("label", job(judge={"price": price, "known": "people"}))
    assert (code, err.count("Traceback")) == (0, 0)
    assert "labelled    30 (cats 20, ships 10)" in out
    rows = labels(tmp_path)
    assert [row["label"] for row in rows] == ROWS["people"]
    assert [row["text"] for row in rows] == TEXTS
    assert list(rows[0]) == ["source", "row", "text", "lang", "people", "judge_truncated", "label"]
    found = report(tmp_path)
    assert found["tokens"] == {"prompt": 300, "completion": 60}
    assert found["cost"] == pytest.approx(300e-6 + 600e-6)
    assert found["agreement"]["known"] == {"documents": 30, "share": 1.0}
    assert set(prompts(server).values()) == {1}
    # Once more: nothing is left to ask.
    assert call("label", tmp_path / "label.yaml")[0] == 0
    assert len(server.asked) == 30
    columns = {"path": str(tmp_path / "out")}
    model = make_checkpoint()
    trained = train({"text": ["-"]}, model, output="trained", task="text-classification", epochs=1, train=columns)
    assert json.loads((trained.folder / "training.json").read_text())["rows"]["train"] == 30


def test_requests_are_those_of_the_client(call, job, server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-123")
    options = {"temperature": 0, "max_completion_tokens": 4}
    assert call("label", job(sample={"documents": 1}, judge={"api_key_env": "JUDGE_KEY", "options": options}))[0] == 0
    mine, headers = server.asked.pop(), server.headers.pop()
    client = openai.OpenAI(base_url=server.url, api_key="sk-123")
    client.chat.completions.create(model="large", messages=mine["messages"], **options)
    assert server.asked.pop() == mine
    assert server.headers.pop()["authorization"] == headers["authorization"] == "Bearer sk-123"


def test_what_is_no_label_is_left_out_by_name(call, job, server, tmp_path):
    said = {0: "I think cats", 1: ' "Cats." ', 2: "", 3: "dogs", 5: None}

    def answers(prompt, _):
        index = next(i for i, text in enumerate(TEXTS) if text in prompt)
        if index == 4:
            return 400, {}, json.dumps({"error": {"message": f"too long: {prompt}"}}).encode()
        return 200, {}, said.get(index, "ships")

    server.answers = answers
    code, out, err = call("label", job())
    assert code == 0
    rows = {row["row"]: row["label"] for row in labels(tmp_path)}
    assert rows == {1: "cats", **dict.fromkeys(range(6, 30), "ships")}
    assert report(tmp_path)["left_out"] == {"no_label": 4, "refused_400": 1}
    left = pq.read_table(tmp_path / "out" / "_left_out.parquet").to_pylist()
    assert {row["row"]: row["why"] for row in left} == {
        **dict.fromkeys((0, 2, 3, 5), "no_label"),
        4: "refused_400",
    }
    assert "left out    5 (no_label 4, refused_400 1)" in out
    assert not any(text in out + err for text in TEXTS)


def test_documents_that_are_asked_about_twice(call, job, server, tmp_path):
    server.answers = lambda prompt, before: (200, {}, "ships" if before and "Document 7 " in prompt else "cats")
    code, out, _ = call("label", job(judge={"repeat": 2, "concurrency": 1}))
    assert code == 0
    assert set(prompts(server).values()) == {2}
    assert report(tmp_path)["left_out"] == {"disagreed": 1}
    assert report(tmp_path)["agreement"]["repeats"] == {"documents": 30, "share": pytest.approx(29 / 30)}
    assert "96.7% of 30" in out


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(call, job, server, status):
    came = []

    def answers(prompt, before):
        came.append(time.monotonic())
        return (200, {}, "cats") if before else (status, {"retry-after": "1"}, b"{}")

    server.answers = answers
    assert call("label", job(sample={"documents": 1}))[0] == 0
    assert len(came) == 2
    assert came[1] - came[0] >= 1.0


def test_a_server_that_is_busy_for_long(call, job, server, tmp_path):
    server.answers = lambda prompt, _: (
        (429, {"retry-after": "3600"}, b"{}") if "ships." in prompt else (200, {}, "cats")
    )
    code, _, err = call("label", "--quiet", job(judge={"patience": 5, "concurrency": 1}))
    assert code == 1
    assert err.count("\n") == 1
    assert "status 429, which asks to wait for 1 h 0 min" in err
    assert "the same command goes on from there" in err
    done = len(labels(tmp_path))
    server.answers = lambda prompt, _: (200, {}, "cats")
    asked = len(server.asked)
    assert call("label", tmp_path / "label.yaml")[0] == 0
    assert len(server.asked) - asked == 30 - done
    assert len(labels(tmp_path)) == 30


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((401, {}, b"key sk-123 is wrong"), "status 401; is the key right"),
        ((404, {}, b"no such model"), "are judge.url and judge.model right?"),
        ((200, {}, b"<html>Hello</html>"), "is no chat completion"),
        ((200, {}, b'{"choices": []}'), "is no chat completion"),
        ((200, {}, "perhaps"), "none of the last 20 answers is a label (20 no_label)"),
        ((422, {}, b"{}"), "20 refused_422"),
    ],
)
def test_a_server_that_is_of_no_use(call, job, server, monkeypatch, reply, says):
    monkeypatch.setenv("JUDGE_KEY", "sk-123")
    server.answers = lambda prompt, _: reply
    code, out, err = call("label", "--quiet", job(judge={"api_key_env": "JUDGE_KEY", "concurrency": 1}))
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert says in err
    assert "sk-123" not in err
    assert len(server.asked) <= 20


def test_no_server(call, job):
    code, _, err = call("label", "--quiet", job(judge={"url": "http://127.0.0.1:9", "patience": 0}))
    assert code == 1
    assert "no answer (ConnectError)" in err


WRONG = [
    ({"judge": {"prompt": "cats?"}}, "expected {text} in it"),
    ({"judge": {"labels": ["a", "A."]}}, "two are the same"),
    ({"judge": {"labels": ["a"]}}, "judge.labels"),
    ({"judge": {"api_key_env": "sk-abc"}}, "expected the name of an environment variable"),
    ({"judge": {"api_key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set"),
    ({"judge": {"url": "http://u:secret@h/v1"}}, "say api_key_env"),
    ({"judge": {"url": "ftp://h"}}, "expected http://"),
    ({"judge": {"options": {"messages": []}}}, "messages is set by the command"),
    ({"judge": {"modle": "x"}}, "did you mean 'model'?"),
    ({"judge": {"known": "topic"}}, "expected 'topic' in it"),
    ({"judge": {"prompt": "{text} {text_pair}"}}, "input.text_pair names no column"),
    ({"sample": {"by": "topic"}}, "expected 'topic' in it"),
    ({"sample": {"column": "score"}}, "the strategy is random"),
    ({"sample": {"documents": 0}}, "sample.documents"),
    ({"sample": {"strategy": "uncertain"}}, "score"),
    ({"sample": {"strategy": "uncertain", "column": "lang"}}, "expected numbers"),
    ({"sample": {"strategy": "diverse", "column": "lang"}}, "expected vectors"),
    ({"input": {"text": "body"}}, "'body'"),
    ({"input": {"keep": ["lang", "people", "none"]}}, "'none'"),
    ({"input": {"keep": ["row"]}}, "rename the column"),
    ({"input": {"published": "x"}}, "either a path or published"),
    ({"output": {"label": "lang"}}, "another column of the output"),
    ({"output": {"path": "s3://bucket/x"}}, "expected a folder of this machine"),
]


@pytest.mark.parametrize(("sections", "says"), WRONG)
def test_what_is_wrong_is_said_before_anything_is_asked(call, job, server, sections, says):
    code, _, err = call("label", "--quiet", job(**sections))
    assert code == 2
    assert err.count("\n") == 1
    assert says in err
    assert "secret" not in err
    assert "sk-abc" not in err
    assert not server.asked


def test_folders_of_others(call, job, tmp_path):
    assert call("label", job())[0] == 0
    code, _, err = call("label", job(judge={"prompt": "Another one: {text}"}))
    assert (code, "was made by another job" in err) == (2, True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    code, _, err = call("label", job(), "--output", tmp_path / "other")
    assert (code, "has other files (mine.txt)" in err) == (2, True)


def test_a_full_disk(call, job, server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = job()
    with monkeypatch.context() as patched:
        patched.setattr("xlmr_ray.train.judge.kept.pq.write_table", full)
        patched.setattr("xlmr_ray.train.judge.label.keep_sample", lambda *_: kept_before(tmp_path))
        code, _, err = call("label", "--quiet", path)
    assert code == 1
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert len(server.asked) == 30
    assert call("label", path)[0] == 0
    assert len(server.asked) == 30
    assert len(labels(tmp_path)) == 30


def kept_before(folder):
    """What `sample` leaves, where the disk was not yet full."""
    table = pa.table({"source": ["x"] * 30, "row": range(30), **ROWS, "judge_truncated": [False] * 30})
    with pa.OSFile(str(folder / "out" / "_sample.parquet"), "wb") as file, pq.ParquetWriter(file, table.schema) as to:
        to.write_table(table)
    return {"seen": 30, "skipped": 0, "documents": 30, "truncated": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_that_is_stopped_waits_for_what_is_under_way(call, job, server, tmp_path, number):
    once = iter([number])

    def slow(prompt, _):
        time.sleep(0.02)
        if len(server.asked) >= 7 and (sent := next(once, None)):
            os.kill(os.getpid(), sent)
        return 200, {}, "cats"

    server.answers = slow
    path = job(judge={"concurrency": 2})
    checked = check_label_job(yaml.safe_load(path.read_text("utf-8")), "job")
    with ProgressLine(Console(stderr=True), "answers", quiet=True) as display, pytest.raises(Interrupted) as stopped:
        label(checked, iter_whole, result_files, display)
    assert f"stopped; {len(server.asked)} of 30 answers are kept" in str(stopped.value)
    assert len(labels(tmp_path)) == len(server.asked) < 30
    server.answers = lambda prompt, _: (200, {}, "cats")
    assert call("label", path)[0] == 0
    assert set(prompts(server).values()) == {1}
    assert len(labels(tmp_path)) == 30


def test_a_call_that_is_killed_asks_again_only_what_was_under_way(call, job, server, tmp_path):
    def slow(prompt, _):
        time.sleep(0.05)
        return 200, {}, "cats"

    server.answers = slow
    path = job(judge={"concurrency": 2})
    process = subprocess.Popen([sys.executable, "-m", "xlmr_ray", "label", "--quiet", path])
    journal = tmp_path / "out" / "_answers.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = journal.read_bytes().count(b"\n")
    time.sleep(0.2)
    under_way = len(server.asked) - kept
    assert under_way <= 2
    with journal.open("ab") as file:
        file.write(b'{"row": 3, "tu')  # as where a machine fails in the middle of a line
    server.answers = lambda prompt, _: (200, {}, "cats")
    assert call("label", path)[0] == 0
    assert len(server.asked) == 30 + under_way
    assert len(labels(tmp_path)) == 30


def test_two_calls_at_once(call, job, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "_lock"):
        code, _, err = call("label", job())
    assert (code, "another call labels there now" in err) == (2, True)


def test_prompts():
    given = {"url": "http://h", "model": "m", "labels": ["a", "b"], "max_chars": 12}
    section = JudgeSection(prompt="{labels}: {text} and {text_pair}; {other} {text}", **given)
    texts = {"text": "{text_pair}{labels}", "text_pair": "x"}
    assert question(section, texts) == "a, b: {text_pair}{ and x; {other} {text_pair}{"


def test_retry_after():
    assert retry_after("2.5") == 2.5
    assert retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_cut_texts_are_marked(call, job, server, tmp_path):
    rows = {**ROWS, "text": ["cats. " + "x" * 100, *TEXTS[1:]]}
    code, out, _ = call("label", job(rows, judge={"max_chars": 60}))
    assert code == 0
    assert "cut         1 texts" in out
    assert [row["row"] for row in labels(tmp_path) if row["judge_truncated"]] == [0]
    assert max(len(prompt) for prompt in prompts(server)) == len("One of cats, ships?\n\n") + 60


def test_rows_that_cannot_be_asked_about(call, job, tmp_path):
    rows = {**ROWS, "text": [None, " ", *TEXTS[2:]]}
    code, _, err = call("label", job(rows))
    assert code == 0
    assert "28 documents drawn of 28, 2 have no text" in err
    assert [row["row"] for row in labels(tmp_path)] == list(range(2, 30))


def test_a_published_table(call, job, server, tmp_path, monkeypatch):
    """Rows are named as the table names them, by their first source."""
    folder = tmp_path / "published"
    folder.mkdir()
    scores = [index / 30 for index in range(30)]
    table = {**ROWS, "source": ["s3://a/b.parquet"] * 30, "row": [100 + i for i in range(30)], "score": scores}
    pq.write_table(pa.table(table), folder / "one.parquet")
    monkeypatch.setattr("xlmr_ray.batch.ledger.results.result_files", lambda out: [f"{out}/one.parquet"])
    sample = {"documents": 4, "strategy": "uncertain", "by": ["lang"]}
    assert call("label", job(input={"path": None, "published": str(folder)}, sample=sample))[0] == 0
    assert [(row["source"], row["row"]) for row in labels(tmp_path)] == [
        ("s3://a/b.parquet", 100 + i) for i in range(4)
    ]
