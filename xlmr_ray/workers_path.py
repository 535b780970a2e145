"""What Ray's workers import: the package and its libraries, and nothing of the folder that a user happens to be in."""

import contextlib
import os
import sys
from collections.abc import Iterator
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
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        with contextlib.chdir("/"):
            yield
    finally:
        if known is not None:
            os.environ["PYTHONPATH"] = known
        else:
            os.environ.pop("PYTHONPATH", None)
