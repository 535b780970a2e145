"""`xlmr-ray demo`: the package's main job on what the package carries, and how well it went."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.observe.printing import print_run_summary
from xlmr_ray.batch.run import run_job
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.text.progress_line import say

MODEL = "embedded:mini"
CORPUS = Path(__file__).parent / "assets" / "udhr"
EXAMPLES = ("en", "ar", "hi", "ja", "sw", "ru", "he", "vi")


def run_demo(output: str) -> None:
    """Labels the sample corpus, prints examples, rates and accuracy by language, and says where the Parquet lies."""
    console = Console()
    say(console, "Naming the language of each article of the Universal Declaration of Human Rights")
    content = {
        "name": "demo",
        "model": MODEL,
        "input": {"path": str(CORPUS / "*.parquet"), "id": "id", "keep": ["lang", "article", "text"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": output},
    }
    job = check_job(content, "demo")
    outcome = run_job(job, console=Console(stderr=True))
    rows = pq.read_table(Path(output) / "data" / outcome.manifest.run_id)
    trained = set(XLMRobertaConfig.from_dict(read_config(resolve(MODEL))).labels)
    print_examples(rows, console)
    print_accuracy(rows, trained, console)
    print_run_summary(outcome, console)


def print_examples(rows: pa.Table, console: Console) -> None:
    """The first article in some languages, and what the checkpoint says of it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("language", "label", "score"):
        table.add_column(name, no_wrap=True, min_width=len(name))
    first = rows.filter(pc.equal(rows["article"], 1))
    for lang in EXAMPLES:
        for row in first.filter(pc.equal(first["lang"], lang)).slice(0, 1).to_pylist():
            text = " ".join(row["text"].split())
            table.add_row(text[:80], row["lang"], row["label"], f"{row['score']:.3f}")
    console.print(table, highlight=False, markup=False)


def print_accuracy(rows: pa.Table, trained: set[str], console: Console) -> None:
    """Accuracy by language against the corpus's own labels, on which the checkpoint was not trained."""
    right = pc.equal(rows["label"], rows["lang"]).cast(pa.int64())
    by_lang = (
        pa.table({"lang": rows["lang"], "right": right})
        .group_by("lang", use_threads=False)
        .aggregate([("right", "sum"), ("right", "count")])
    )
    figures = {row["lang"]: (row["right_sum"], row["right_count"]) for row in by_lang.to_pylist()}
    known = sorted((lang for lang in figures if lang in trained), key=lambda lang: figures[lang][0] / figures[lang][1])
    if not known:
        raise UserError("demo: the corpus has none of the checkpoint's languages")
    say(console, "accuracy by language, lowest first:")
    cells = [f"{lang} {figures[lang][0] / figures[lang][1]:.0%}" for lang in known]
    for start in range(0, len(cells), 12):
        say(console, "  " + "  ".join(f"{cell:8}" for cell in cells[start : start + 12]))
    total, count = (sum(figures[lang][i] for lang in known) for i in (0, 1))
    say(
        console,
        f"accuracy over the {len(known)} languages it was trained on: {total / count:.2%} of {count:,} articles",
    )
    if others := sorted(set(figures) - trained):
        say(console, f"never seen in training, so never named: {', '.join(others)}")
