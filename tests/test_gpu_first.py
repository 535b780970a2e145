"""The script for the first minutes on a GPU runs to its end where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_step_ends(tmp_path):
    script = Path(__file__).parent / "benchmarks" / "gpu_first.sh"
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    subprocess.run(["bash", script, "--small"], env=environment, check=True, capture_output=True)
    text = (tmp_path / "gpu_first.txt").read_text()
    assert text.count("== ") == 8
    assert "== ended with" not in text
    assert "WAITS" not in text
