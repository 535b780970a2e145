"""What surrounds a launch: the current folder, standard streams, folders that are files, names that are not UTF-8. Each
wrong one is one line and exit code 2, never a traceback.
"""

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest


def command(folder, *words, **options):
    return subprocess.run(
        [sys.executable, "-m", "xlmr_ray", *words], cwd=folder, capture_output=True, timeout=200, check=False, **options
    )


def test_the_users_own_modules_stay_out_of_the_workers_and_a_closed_stderr_is_no_error(tmp_path, mini):
    (tmp_path / "tokenizers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "m").symlink_to(mini)
    job = [sys.executable, "-m", "xlmr_ray", "run", "text-classification", "--input", "a.jsonl", "--output", "out"]
    shell = " ".join([*job, "--model", "m", "2>&-"])
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, stdout=subprocess.PIPE, timeout=200, check=False)
    assert done.returncode == 0
    assert b"rows in 1 = out 1 + errors 0" in done.stdout
    assert not (tmp_path / "ran").exists()
    (written,) = (tmp_path / "out" / "data").rglob("*.parquet")
    assert pq.read_table(written)["source"].to_pylist() == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status", "file"], "file/_current.json: cannot be read: a file is where a folder should be"),
        (["verify", "file/out"], "file/out/_current.json: cannot be read: a file is where a folder should be"),
        (["files", "file"], "file/_current.json: cannot be read: a file is where a folder should be"),
        (["status", "~nosuchuser/out"], "no user nosuchuser here"),
        (["status", os.fsdecode(b"caf\xe9")], r"caf\xe9: is not UTF-8; rename the file or folder"),
    ],
)
def test_one_line(tmp_path, words, says):
    (tmp_path / "file").write_text("x")
    done = command(tmp_path, *words)
    (line,) = done.stderr.decode().splitlines()
    assert says in line
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_ray_folder_that_is_too_long_for_sockets(tmp_path, name):
    script = "from xlmr_ray.batch.cluster import connected\nwith connected('local'): pass"
    long = tmp_path / ("x" * 90)
    environment = {**os.environ, "RAY_TMPDIR": "", name: str(long), "RAY_ADDRESS": ""}
    if name == "TMPDIR":
        del environment["RAY_TMPDIR"]
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"xlmr_ray.errors.UserError: {name} {long}: too long for the paths of sockets; set RAY_TMPDIR"
    )
