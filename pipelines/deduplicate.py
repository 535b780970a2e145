"""Names the documents that repeat another one: the same text, nearly the same text, or nearly the same embedding.

    python pipelines/deduplicate.py [JOB.yaml | OUT] [--methods exact,minhash] [--output FOLDER]

With a job file (default pipelines/embed.yaml) the texts are its input's, and for `embedding` the job is run, or goes
on; with the output of a job, they are a column that it kept. See docs/deduplicate.md.
"""

import argparse
import signal
from functools import partial
from pathlib import Path

from rich.console import Console

from xlmr_ray.batch.cluster import connected
from xlmr_ray.batch.duplicates.report import one_line
from xlmr_ray.batch.duplicates.run import METHODS, Search, deduplicate
from xlmr_ray.batch.duplicates.sketch import bands_and_rows
from xlmr_ray.batch.duplicates.steps import on_ray
from xlmr_ray.batch.duplicates.texts import Texts, corpus_of, texts_of_table
from xlmr_ray.batch.duplicates.vectors import embeddings_of
from xlmr_ray.batch.job import job_of_call
from xlmr_ray.batch.prepare import checked_store
from xlmr_ray.batch.run import run_job
from xlmr_ray.streams import ends_in_one_line
from xlmr_ray.text.progress_line import say

JOB = Path(__file__).parent / "embed.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", nargs="?", default=str(JOB), metavar="JOB.yaml | OUT")
    parser.add_argument("--methods", default="exact,minhash", help=f"some of {', '.join(METHODS)}, in any order")
    parser.add_argument("--jaccard", type=float, default=0.8, help="of minhash: the least similarity of two texts")
    parser.add_argument("--cosine", type=float, help="of embedding: the least cosine; it differs by checkpoint")
    parser.add_argument("--by", default="lang", help="the column with the language, or none")
    parser.add_argument("--text", default="text", help="of an output: the kept column with the texts")
    parser.add_argument("--vectors", default="embedding", help="the column with the vectors")
    parser.add_argument("--output", default="demo-output/duplicates", help="a folder or URL")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ends_in_one_line():
        find(args)


def find(args: argparse.Namespace) -> None:
    """Checks all that can be checked before the cluster is started."""
    wanted = Search(tuple(filter(None, args.methods.split(","))), args.jaccard, args.cosine)
    if "minhash" in wanted.methods:
        bands_and_rows(wanted.jaccard)
    job = job_of_call(args.of) if args.of.endswith((".yaml", ".yml")) else None
    table = args.of if job is None else job.output.path
    store = checked_store(args.output, lambda store: store.probe(), at_least_once=False)
    texts: Texts | None = None
    if wanted.of_texts:
        texts = corpus_of(job, args.by) if job else texts_of_table(table, args.text, args.by)
    look = partial(embeddings_of, table, args.vectors, args.by)
    if job is None and "embedding" in wanted.methods:
        look()
    console = Console(highlight=False)
    with connected(job.cluster.address if job else "auto"):
        if job is not None and "embedding" in wanted.methods:
            run_job(job)
        run, report = deduplicate(
            store,
            wanted,
            texts=texts,
            vectors=look() if "embedding" in wanted.methods else None,
            by=args.by,
            each=on_ray,
            tell=partial(say, console),
        )
    say(console, one_line(report))
    for lost in report.get("files_not_read", []):
        say(console, f"not read: {lost['file']} ({lost['code']})")
    say(console, f"they are named in {store.url(f'{run}/duplicates.parquet')}, counted in report.json beside it")


if __name__ == "__main__":
    main()
