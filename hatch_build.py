"""Compiles `xlmr_ray/model/kernels/` when the package is built or installed from its source, where there is a C++
compiler for x86-64. Without one the package is complete, and slower on CPUs with AVX-512.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("xlmr_ray/model/kernels")
LIBRARY = KERNELS / "libkernels.so"
INSTRUCTIONS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", *INSTRUCTIONS)


def compiled(root: Path) -> bool:
    """Compiles the kernels beside their sources; where that can't be, a line says why."""
    library = (root / LIBRARY).resolve()
    library.unlink(missing_ok=True)  # one of an older source
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or "")
    if not compiler or sys.platform != "linux" or platform.machine() != "x86_64":
        print("xlmr_ray: no g++ for x86-64 here: attention on CPUs with AVX-512 will be torch's", file=sys.stderr)
        return False
    sources = sorted((root / KERNELS).resolve().glob("*.cpp"))
    objects = [source.with_suffix(".o").name for source in sources]
    with TemporaryDirectory() as work:
        # Linked without OpenMP, so that torch's own is used, with its threads.
        return ran(work, *compiler, *FLAGS, "-c", *map(str, sources)) and ran(
            work, *compiler, "-shared", "-o", str(library), *objects
        )


def ran(where: str, *command: str) -> bool:
    """Whether the command succeeded in that folder; what it says otherwise."""
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"xlmr_ray: the kernels were not compiled: {' '.join(command)}\n{done.stderr}", file=sys.stderr)
    return done.returncode == 0


class Kernels(BuildHookInterface):
    """The hook that hatchling calls before a wheel is packed or the source is installed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if compiled(Path(self.root)):
            # For this platform, and for every Python: nothing of Python is compiled.
            build_data["artifacts"].append(str(LIBRARY))
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
