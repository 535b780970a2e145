"""Passages of help pages, and which program of the suite each is about: for a head on embedded:help.

    python pipelines/mini/make_topics.py WORK/help.parquet WORK/topics

Writes train.parquet, and test.parquet of pages that are held out. A passage is paragraphs of a page one after another,
of 80 characters or more; pages that are about no program are left out; every language has as many as every other.
"""

import random
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHORTEST = 80
ROWS = {"train": 20_000, "test": 5_800}


def passages(help_pages: Path, *, held_out: bool) -> dict[str, list[dict[str, str]]]:
    """By language."""
    table = pq.read_table(help_pages, filters=(pc.field("held_out") == held_out) & (pc.field("program") != "common"))
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (lang, page, program), rows in groupby(
        table.to_pylist(), lambda row: (row["lang"], row["page"], row["program"])
    ):
        text = ""
        for row in rows:
            text = f"{text}\n{row['text']}".strip()
            if len(text) >= SHORTEST:
                found[lang].append({"lang": lang, "page": page, "text": text, "label": program})
                text = ""
    return found


def main(help_pages: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    for split, count in ROWS.items():
        by_language = passages(help_pages, held_out=split == "test")
        each = count // len(by_language)
        rows = [
            row
            for lang in sorted(by_language)
            for row in rng.sample(by_language[lang], min(each, len(by_language[lang])))
        ]
        rng.shuffle(rows)
        pq.write_table(pa.Table.from_pylist(rows), out / f"{split}.parquet")
        print(f"{split}: {len(rows)} passages of {len({row['page'] for row in rows})} pages")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
