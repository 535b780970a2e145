"""Three heads on one encoder in one job, against a job for each: whole processes, in turn, and the same rows.

The heads are random classifiers beside the encoder, so that any checkpoint will do. Prints the ratio of the rates.
usage: python -m tests.benchmarks.heads [--model FOLDER] [--input FILE.parquet] [--rounds N]
"""

import argparse
import copy
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.benchmarks.naive import timed
from xlmr_ray import XLMRobertaConfig, XLMRobertaForSequenceClassification
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.demo import CORPUS

HEADS = ("topic", "tone", "quality")


def with_heads(model: Path, folder: Path) -> Path:
    """The checkpoint, by links, with three heads of 3, 5 and 7 labels."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "heads":
            (folder / path.name).symlink_to(path.resolve())
    config = XLMRobertaConfig.from_dict(read_config(folder))
    torch.manual_seed(7)
    for name, labels in zip(HEADS, (3, 5, 7), strict=True):
        values = copy.deepcopy(config.to_dict())
        own = XLMRobertaConfig.from_dict(values, num_labels=labels)
        with torch.device("meta"):
            classifier = XLMRobertaForSequenceClassification(own).classifier
        head = torch.nn.ModuleDict({"classifier": classifier.to_empty(device="cpu")})
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
        save_head(head, folder, name, config=own)
    return folder


def run(work: Path, name: str, source: Path, heads: tuple[str, ...]) -> tuple[float, dict[str, pa.Table]]:
    """Seconds, and each head's labels and scores in the order of the input."""
    out = work / name
    tasks = [{"task": "text-classification", "name": head, "model": str(work / "model/heads" / head)} for head in heads]
    job = {"model": str(work / "model"), "input": {"path": str(source)}, "tasks": tasks, "output": {"path": str(out)}}
    (work / f"{name}.yaml").write_text(json.dumps(job), "utf-8")
    seconds = timed("xlmr_ray", "run", str(work / f"{name}.yaml"))
    rows = pa.concat_tables(pq.read_table(file) for file in result_files(str(out))).sort_by("row")
    prefixes = {head: f"{head}_" if len(heads) > 1 else "" for head in heads}
    fields = ("label", "score")
    found = {head: rows.select([prefix + f for f in fields]) for head, prefix in prefixes.items()}
    return seconds, {head: table.rename_columns(fields) for head, table in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a folder; default: the embedded checkpoint")
    parser.add_argument("--input", type=Path, help="Parquet with text; default: the embedded corpus")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    with_heads(arguments.model or CORPUS.parent / "mini", work / "model")
    source = arguments.input or CORPUS
    ratios = []
    for turn in range(arguments.rounds):
        together, all_rows = run(work, f"together{turn}", source, HEADS)
        alone = 0.0
        for head in HEADS:
            seconds, rows = run(work, f"{head}{turn}", source, (head,))
            alone += seconds
            assert rows[head].equals(all_rows[head]), head  # to the last bit
        ratios.append(alone / together)
        print(f"round {turn}: one job {together:.1f} s, three jobs {alone:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
