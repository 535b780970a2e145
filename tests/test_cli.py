"""The command line: exit codes, and one line on standard error for a user's mistake."""

import json
import re

import pytest

import xlmr_ray


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(5)))
    return path


def test_a_missing_path(call, model, tmp_path):
    code, _, err = call("run", "embedding", "--model", model, "--input", tmp_path / "none", "--output", tmp_path / "o")
    assert (code, err) == (2, f"xlmr-ray: {tmp_path}/none: no such file or folder\n")


def test_an_unknown_key(call, corpus, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(f"input: {{path: {corpus}}}\ntasks: [{{task: embedding}}]\noutptu: {{path: o}}\n")
    code, _, err = call("run", job, "--output", tmp_path / "o")
    assert (code, err) == (2, f"xlmr-ray: {job}: unknown key 'outptu', did you mean 'output'?\n")


def test_a_model_that_is_no_xlm_r(call, corpus, tmp_path):
    folder = tmp_path / "distilbert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "distilbert", "vocab_size": 5}')
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    code, _, err = call("run", "embedding", "--model", folder, "--input", corpus, "--output", tmp_path / "o")
    assert code == 2
    assert err.startswith(f"xlmr-ray: {folder}")
    assert "'distilbert'" in err
    assert err.count("\n") == 1


def test_a_folder_without_weights(call, corpus, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    code, _, err = call("run", "embedding", "--model", folder, "--input", corpus, "--output", tmp_path / "o")
    assert code == 2
    assert "model.safetensors" in err
    assert err.count("\n") == 1


def test_a_column_that_no_file_has(call, model, corpus, tmp_path):
    job = ["run", "embedding", "--model", model, "--input", corpus, "--output", tmp_path / "o"]
    csv = tmp_path / "a.csv"
    csv.write_text("id,text\n1,one\n")
    code, _, err = call(*job[:5], csv, *job[6:], "--set", "input.text=body")
    assert code == 2
    assert err.startswith(f"xlmr-ray: nothing to read: {csv}: ")
    assert "'body'" in err


def test_an_output_that_cannot_be_written(call, model, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("run", "embedding", "--model", model, "--input", corpus, "--output", tmp_path / "file" / "out")
    assert code == 2
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "nothing: neither a job file nor a task"),
        (["run", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["run", "embedding", "--output", "o"], "embedding: nothing says the input; give --input"),
        (["run", "embedding", "--input", "i"], "embedding: nothing says the output; give --output"),
        (["run", "embedding", "--input", "i", "--output", "o", "--set", "x"], "--set x: want key=value"),
        (["evaluate", "embedding", "--data", "d", "--column", "x"], "--column x: want key=value"),
        (["calibrate", "rerank", "--model", "m", "--data", "d", "--option", "x"], "--option x: want key=value"),
    ],
)
def test_calls_that_say_too_little(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith(f"xlmr-ray: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["bogus"], ["run"], ["run", "embedding", "--bogus"]])
def test_usage(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "Usage:" in re.sub(r"\x1b\[[0-9;]*m", "", err)


def test_a_job_from_run_to_sweep(steps_here, call, model, corpus, tmp_path):
    out = tmp_path / "out"
    run = ["run", "text-classification", "--model", model, "--input", corpus, "--output", out]
    code, printed, err = call(*run, "--set", "cluster.shard_rows=2")
    assert code == 0, err
    assert "rows in 5 = out 5 + errors 0" in printed
    assert "5 documents of 1 file in 3 shards" in err
    code, printed, _ = call(*run)
    assert code == 0
    assert "nothing left to do" in printed
    code, printed, _ = call("status", out)
    assert (code, "published" in printed, "3/3" in printed) == (0, True, True)
    code, printed, _ = call("verify", out)
    assert code == 0
    assert printed.rstrip().endswith("verified")
    orphan = next(out.glob("data/*/*.parquet"))
    (orphan.parent / f"{orphan.name.rsplit('-', 1)[0]}-{'0' * 16}.parquet").write_bytes(b"left over")
    code, printed, _ = call("sweep", out, "--dry-run")
    assert "would remove" in printed
    code, printed, _ = call("sweep", out)
    assert "1 file, 9 bytes" in printed
    orphan.write_bytes(b"damaged")
    code, printed, err = call("verify", out)
    assert code == 1
    assert orphan.name in printed
    assert err.startswith(f"xlmr-ray: {out}: run ")


def test_status_and_verify_of_nothing(call, tmp_path):
    assert call("status", tmp_path)[:2] == (0, f"{tmp_path}: no runs\n")
    code, _, err = call("verify", tmp_path)
    assert code == 2
    assert "nothing is published there yet" in err


def test_version(call):
    assert call("--version") == (0, f"xlmr-ray {xlmr_ray.__version__}\n", "")
