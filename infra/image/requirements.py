"""Prints what the package depends on, from its pyproject.toml, so that an image can have it in a separate layer:
python requirements.py pyproject.toml cpu|cuda
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, torch: str) -> list[str]:
    """The dependencies; with `cuda` those of 4-bit and 8-bit weights, too."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["quantization"] if torch == "cuda" else []
    return [*project["dependencies"], *extra]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2])))
