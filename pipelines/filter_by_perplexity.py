"""Keeps the documents of each language that a masked language model finds most usual.

    python pipelines/filter_by_perplexity.py [JOB.yaml] [--keep 0.5] [--by lang] [--output FOLDER]

Runs the job (default pipelines/score-perplexity.yaml), or goes on with it, then writes the rows of `data/` whose
`perplexity` is within the best part of their group as Parquet. Perplexities of different languages are no measure of
each other, so the group is the language.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.aggregate import Quantile

from xlmr_ray.batch.cluster import connected
from xlmr_ray.batch.job import check_job, read_job
from xlmr_ray.batch.ledger.results import read_results
from xlmr_ray.batch.run import run_job

JOB = Path(__file__).parent / "score-perplexity.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", type=Path, default=JOB)
    parser.add_argument("--keep", type=float, default=0.5, help="the part of each group that stays")
    parser.add_argument("--by", default="lang", help="the kept column that groups")
    parser.add_argument("--output", default="demo-output/usual", help="a folder for the rows that stay")
    args = parser.parse_args()
    job = check_job(read_job(args.job), str(args.job))
    with connected(job.cluster.address):
        run_job(job)
        rows = read_results(job.output.path)
        limits = rows.groupby(args.by).aggregate(Quantile("perplexity", args.keep, alias_name="limit")).to_pandas()
        groups, values = pa.array(limits[args.by]), pa.array(limits["limit"])

        def usual(table: pa.Table) -> pa.Table:
            limit = values.take(pc.index_in(table[args.by], value_set=groups))
            return table.filter(pc.less_equal(table["perplexity"], limit))

        kept = rows.map_batches(usual, batch_format="pyarrow").materialize()
        kept.write_parquet(args.output, mode="overwrite")
        print(f"{kept.count():,} of {rows.count():,} documents stay, in {args.output}")


if __name__ == "__main__":
    main()
