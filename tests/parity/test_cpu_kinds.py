"""One machine plays lesser and other CPUs: parity, quantized files, and results that do not depend on the batch."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# oneDNN and torch choose their kernels by these; where the CPU has less, it plays itself.
KINDS = {
    "itself": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
# MKL has its AVX2 and AVX-512 kernels for Intel only; asked by this function, which a program may bring along.
INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def looked_at(folder: Path, environment: dict[str, str]) -> list[str]:
    call = [sys.executable, "-m", "tests.parity.cpu_kinds", str(folder)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        call, env=os.environ | environment, capture_output=True, text=True, timeout=280, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "round otherwise" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "kind",
    [
        "itself",
        *(["avx2"] if torch.backends.cpu.get_cpu_capability() != "AVX2" else []),
        pytest.param("avx512", marks=pytest.mark.slow),
        pytest.param("sse", marks=pytest.mark.slow),
    ],
)
def test_kind(tmp_path: Path, kind: str) -> None:
    *failures, last = looked_at(tmp_path, KINDS[kind])
    assert last.startswith("looked at")
    assert not failures


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="needs a C compiler on x86-64")
def test_intel(tmp_path: Path) -> None:
    """With MKL's kernels for Intel, which split sums among threads."""
    source, library = tmp_path / "intel.c", tmp_path / "intel.so"
    source.write_text(INTEL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    *failures, last = looked_at(tmp_path / "model", {"LD_PRELOAD": str(library)})
    assert last.startswith("looked at")
    assert not failures
