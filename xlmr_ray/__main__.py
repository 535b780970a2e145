"""`python -m xlmr_ray`: the command line, where the script is not on the path."""

import sys
from pathlib import Path

if sys.path[0] in ("", str(Path.cwd())):
    # A file `tokenizers.py` there is the user's, and not the package of that name.
    del sys.path[0]

from xlmr_ray.cli import main

main()
