"""A few dozen documents of the embedded corpus, with some that are error rows, and the job that labels them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import yaml

import xlmr_ray

ROWS = 36
BAD = 3
SHARD_ROWS = 2


def write_corpus(folder: Path) -> None:
    """Two files: Parquet, and JSON Lines with empty and missing texts."""
    folder.mkdir(parents=True)
    found = pq.read_table(Path(xlmr_ray.__file__).parent / "assets" / "udhr" / "part-0.parquet").slice(0, ROWS)
    half = (ROWS - BAD) // 2
    pq.write_table(found.slice(0, half), folder / "a.parquet", row_group_size=5)
    lines = found.slice(half, ROWS - half - BAD).to_pylist()
    lines[3:3] = [{"id": "empty", "text": ""}, {"id": "null", "text": None}]
    lines.append({"id": "blank", "text": ""})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "b.jsonl").write_text(text, "utf-8")


def write_lines(folder: Path) -> None:
    """As many documents in files of lines, three in each, and one file that is empty."""
    folder.mkdir(parents=True)
    found = pq.read_table(Path(xlmr_ray.__file__).parent / "assets" / "udhr" / "part-1.parquet").slice(0, ROWS)
    for number in range(ROWS // 3):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.slice(3 * number, 3).to_pylist()]
        (folder / f"{number:02}.jsonl").write_text("".join(lines), "utf-8")
    (folder / "none.jsonl").touch()


def write_job(path: Path, source: str, output: str, *, compact: bool = False) -> Path:
    """A job file with shards of two rows: about twenty records to be interrupted between."""
    job = {
        "name": "faults",
        "model": "embedded:mini",
        "input": {"path": source, "text": "text", "id": "id", "keep": ["lang"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": output, "compact": compact},
        "cluster": {"shard_rows": SHARD_ROWS, "tokenizers": 1, "encoders": 2},
        "errors": {"max_fraction": 0.3},
    }
    path.write_text(yaml.safe_dump(job), "utf-8")
    return path
