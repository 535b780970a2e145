"""Where checkpoints are kept that were fetched from a store or made of two."""

import os
from pathlib import Path


def cache_folder(chosen: str | Path | None) -> Path:
    """The one that the caller chose, that of `XLMR_RAY_CACHE`, or the user's own."""
    if chosen is not None:
        return Path(chosen).expanduser() / "checkpoints"
    own = os.environ.get("XLMR_RAY_CACHE")
    if own:
        return Path(own).expanduser() / "checkpoints"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlmr_ray" / "checkpoints"
