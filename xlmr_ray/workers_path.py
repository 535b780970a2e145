"""What Ray's workers inherit: variables, and an import path with the package and its libraries, and nothing of the
folder that a user happens to be in.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def away_from_here() -> Iterator[None]:
    """Ray puts the driver's current folder before everything else on its workers' import path, so that a file
    `tokenizers.py` there would run in the place of the package. In here that folder is `/`, where its processes then
    are, too.

    A package that was imported from the current folder, as in a checkout that is not installed, is found by
    PYTHONPATH.
    """
    here, package = Path.cwd(), Path(__file__).parents[1]
    others = [here / entry for entry in sys.path if entry not in ("", str(here))]
    known = os.environ.get("PYTHONPATH")
    paths = [str(here / entry) for entry in known.split(os.pathsep) if entry] if known else []
    if not any(entry.resolve() == package.resolve() for entry in others):
        paths.append(str(package))
    with in_environment({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}), contextlib.chdir("/"):
        yield


@contextlib.contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables, which the processes that start in it inherit, and none of them behind it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
