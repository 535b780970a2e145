"""Lines of the log that nobody takes: the service goes on without them, and says how many were lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

from xlmr_ray.serve.logs import Lines

# Through the pipe of the process that was started, whose standard error is what the test says.
PROGRAM = """
import os, sys
from pathlib import Path
from xlmr_ray.serve.logs import PIPE_VARIABLE, log_pipe, log_stream

os.environ[PIPE_VARIABLE] = str(log_pipe(Path(sys.argv[1])))
stream = log_stream()
for number in range(20_000):
    stream.write('{"number": %06d, "more": "%s"}\\n' % (number, "a" * 200))
print("done", stream.lost > 0)
"""


def test_a_full_disk_and_a_reader_that_waits(tmp_path: Path) -> None:
    """Four megabytes of lines."""
    read, write = os.pipe()
    try:
        for name, file in (("full", os.open("/dev/full", os.O_WRONLY)), ("waits", os.dup(write))):
            (tmp_path / name).mkdir()
            call = [sys.executable, "-c", PROGRAM, tmp_path / name]
            with os.fdopen(file, "wb") as error:
                done = subprocess.run(call, stdout=subprocess.PIPE, stderr=error, text=True, timeout=60, check=True)
            assert done.stdout.startswith("done")
        assert done.stdout == "done True\n"
    finally:
        os.close(read)
        os.close(write)


def test_what_was_lost_is_said() -> None:
    read, write = os.pipe()
    lines, line = Lines(write), "a" * 1000 + "\n"
    while not lines.lost:
        lines.write(line)
    lines.write(line)
    size = 0
    while size < 100_000:
        size += len(os.read(read, 10_000))
    lines.write(line)
    os.close(write)
    with os.fdopen(read) as rest:
        said = [json.loads(one) for one in rest if one.startswith("{")]
    assert [one["message"] for one in said] == ["lines of the log that nobody took were lost: 2"]


def test_a_line_that_was_cut_ends_there() -> None:
    """The pipe takes a beginning of a long one."""
    read, write = os.pipe()
    lines, size = Lines(write), 0
    lines.write('{"a": "' + "a" * 4_000_000 + '"}\n')
    while size < 20_000:
        size += len(os.read(read, 10_000))
    lines.write('{"message": "next"}\n')
    os.close(write)
    with os.fdopen(read) as rest:
        said = [json.loads(one)["message"] for one in rest if one.startswith("{")]
    assert said == ["lines of the log that nobody took were lost: 1", "next"]
