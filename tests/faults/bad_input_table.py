"""The catalogue of bad input through one job on Ray, as a table: `python -m tests.faults.bad_input_table`.

Exit code 1 if a row is lost or there twice, or has another code than it should.
"""

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.faults.bad_input import LIMIT, Corpus, bad_input, bad_text
from xlmr_ray.batch.cluster import connected
from xlmr_ray.batch.input.readers import line_shards
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.run import run_job


def outcome(corpus: Corpus, out: Path, **columns: str) -> Counter[tuple[str, int, str]]:
    """How often each (file, row, code) came out of a run; the code of an output row is empty."""
    content = {
        "input": {"path": str(corpus.folder), "max_row_bytes": LIMIT, **columns},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(out)},
        "cluster": {"shard_rows": 500},
        "errors": {"max_fraction": 1},
        "engine": {"device": "cpu"},
    }
    name = run_job(check_job(content, "table"), quiet=True).manifest.run_id
    found: Counter[tuple[str, int, str]] = Counter()
    for row in pq.read_table(out / "data" / name, columns=["source", "row"]).to_pylist():
        found[Path(row["source"]).name, row["row"], ""] += 1
    for row in pq.read_table(out / "errors" / name).to_pylist():
        found[Path(row["source"]).name, row["row"], row["code"]] += 1
    return found


def main() -> int:
    line_shards.BOMB_BYTES = 32 << 20  # those of full size take a minute to make
    counts: dict[tuple[str, str], list[int]] = {}
    with tempfile.TemporaryDirectory() as name, connected("local"):
        folder = Path(name)
        for corpus, columns in ((bad_input(folder / "a", folder / "mark"), {"id": "id"}), (bad_text(folder / "b"), {})):
            found = outcome(corpus, folder / f"out-{corpus.folder.name}", **columns)
            wanted = {place: (one.entry, one.code) for place, one in corpus.rows.items()}
            wanted |= {(key, -1): entry for key, entry in corpus.files.items()}
            for (file, row), (entry, code) in wanted.items():
                right, total = found[file, row, code], sum(n for place, n in found.items() if place[:2] == (file, row))
                count = counts.setdefault((entry, code), [0, 0, 0, 0, 0])
                for place, more in enumerate((1, right, total == 0, total > 1, total == 1 and right == 0)):
                    count[place] += more
            counts.setdefault(("rows that were never put in", ""), [0] * 5)[3] += sum(
                place[:2] not in wanted for place in found
            )
        unpickled = (folder / "mark").exists()
    table = Table("entry", "must be", "in", "so", "lost", "twice", "else")
    for (entry, code), count in sorted(counts.items()):
        table.add_row(entry, code or "an output row", *map(str, count))
    totals = [sum(count[place] for count in counts.values()) for place in range(5)]
    table.add_section()
    table.add_row("all", "", *map(str, totals))
    Console(width=120).print(table, f"pickles loaded: {int(unpickled)}")
    return int(totals[0] != totals[1] or any(totals[2:]) or unpickled)


if __name__ == "__main__":
    raise SystemExit(main())
