"""What was removed, by method and language: counts, sizes of groups, and examples by source and row, never texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EXAMPLES = 5
SIZES = (2, 3, 4, 8, 16, 64, 256)  # a group of 5 counts as one of 4 to 7


def of_method(compared: Mapping[str, int], removed: pa.Table) -> dict[str, Any]:
    """`compared`: documents by language; `removed`: `PAIRS`, each with the document that the method kept for it."""
    counted = removed.group_by("language", use_threads=False).aggregate([([], "count_all")]).to_pylist()
    gone = {one["language"]: one["count_all"] for one in counted}
    groups = removed.group_by(["duplicate_of_source", "duplicate_of_row"], use_threads=False).aggregate(
        [([], "count_all")]
    )
    sizes = groups["count_all"].to_numpy() + 1
    near = removed.sort_by([("source", "ascending"), ("row", "ascending")]).slice(0, EXAMPLES)
    return {
        "documents": sum(compared.values()),
        "removed": len(removed),
        "groups": len(groups),
        "largest_group": int(sizes.max()) if len(sizes) else 0,
        "groups_by_size": by_size(sizes),
        "by_language": {
            name: {"documents": count, "removed": gone.get(name, 0)} for name, count in sorted(compared.items())
        },
        "examples": near.drop_columns(["language", "method"]).to_pylist(),
    }


def by_size(sizes: np.ndarray) -> dict[str, int]:
    found = {}
    for low, next_one in zip(SIZES, (*SIZES[1:], None), strict=True):
        name = f"{low}-" if next_one is None else str(low) if next_one == low + 1 else f"{low}-{next_one - 1}"
        inside = (sizes >= low) & (sizes < (next_one or np.inf))
        if inside.any():
            found[name] = int(inside.sum())
    return found


def one_line(report: Mapping[str, Any]) -> str:
    """For the terminal."""
    parts = [f"{name} {part['removed']:,} of {part['documents']:,}" for name, part in report["methods"].items()]
    return f"removed {report['removed']:,}: " + ", ".join(parts)


def by_source(removed: pa.Table) -> dict[str, np.ndarray]:
    """The rows of each source, ascending."""
    ordered = removed.sort_by([("source", "ascending"), ("row", "ascending")])
    sources = pc.run_end_encode(ordered["source"].combine_chunks()) if len(ordered) else None
    if sources is None:
        return {}
    ends = sources.run_ends.to_numpy()
    cut = np.split(ordered["row"].to_numpy(), ends[:-1])
    return dict(zip(sources.values.to_pylist(), cut, strict=True))
