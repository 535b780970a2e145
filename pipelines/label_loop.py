"""From 200 labels to a calibrated head, a scored corpus and a service: the whole loop, with the embedded corpus.

    python pipelines/label_loop.py [--output FOLDER] [--labels 200] [--no-service]

The label is the family of an article's language, which the corpus knows, so that what comes out can be checked: 200
articles are labelled, three of five to train a head on the frozen encoder, the others to calibrate it; the rest is
scored by a job. Each step is a command, which is printed before it runs: put your own files in their place.
"""

import argparse
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.cli import app

CORPUS = Path(__file__).parents[1] / "xlmr_ray" / "assets" / "udhr"
TASK = "text-classification"
FAMILIES = {
    "Romance": ("ca", "es", "fr", "gl", "it", "pt", "ro"),
    "Germanic": ("af", "da", "de", "en", "fy", "nl", "sv"),
    "Slavic": ("be", "bg", "cs", "mk", "pl", "ru", "uk"),
}
FAMILY = {language: family for family, languages in FAMILIES.items() for language in languages}
PRECISION = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-output/label-loop"))
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--no-service", action="store_true", help="do not start the service at the end")
    args = parser.parse_args()
    label_loop(args.output, labels=args.labels, service=not args.no_service)


def label_loop(output: Path, *, labels: int = 200, service: bool = True) -> None:
    started = time.monotonic()
    train, held, rest = label(output, labels)
    head = output / "head"
    write_job(output / "head.yaml", train, head)
    run("finetune", output / "head.yaml")
    column = ("--column", "label=family")
    run("calibrate", TASK, "--model", head, "--data", held, *column, "--precision", PRECISION)
    run("evaluate", TASK, "--model", head, "--data", rest, *column, "--by", "family", "--resamples", 100)
    scored = output / "scored"
    kept = ("--set", "input.keep=[family, lang, text]", "--set", "incremental=true")
    run("run", TASK, "--model", head, "--input", rest, "--output", scored, *kept)
    run("report", scored, "--to", output / "report")
    show(pa.concat_tables(pq.read_table(file) for file in result_files(scored)))
    if service:
        ask(head, pq.read_table(rest)["text"][0].as_py())
    print(f"done in {time.monotonic() - started:.0f} s; label the rows that are named above, and go round again")


def label(output: Path, count: int) -> tuple[Path, Path, Path]:
    """Writes the labelled articles, those to train with and those to calibrate with, and the rest. The same number of
    each family is drawn; in your corpus, somebody labels them.
    """
    corpus = pa.concat_tables(pq.read_table(file) for file in sorted(CORPUS.glob("*.parquet")))
    corpus = corpus.filter(pc.is_in(corpus["lang"], pa.array(list(FAMILY))))
    families = np.array([FAMILY[language] for language in corpus["lang"].to_pylist()])
    corpus = corpus.append_column("family", pa.array(families))
    random = np.random.default_rng(0)
    drawn = np.concatenate(
        [random.permutation(np.flatnonzero(families == one))[: -(-count // len(FAMILIES))] for one in FAMILIES]
    )
    drawn = random.permutation(drawn)[:count]
    parts = drawn[: 3 * count // 5], drawn[3 * count // 5 :], np.setdiff1d(np.arange(len(corpus)), drawn)
    output.mkdir(parents=True, exist_ok=True)
    files = tuple(output / f"{name}.parquet" for name in ("train", "held", "rest"))
    for file, part in zip(files, parts, strict=True):
        if not file.exists():  # a second launch goes on with the same ones
            pq.write_table(corpus.take(pa.array(part)), file)
    return files[0], files[1], files[2]


def write_job(file: Path, train: Path, head: Path) -> None:
    job = {
        "name": "family",
        "model": "embedded:mini",
        "task": TASK,
        "method": "head",
        "train": {"path": str(train), "label": "family", "language": "lang"},
        "output": {"path": str(head)},
        "epochs": 20,
    }
    file.write_text(yaml.safe_dump(job, sort_keys=False), "utf-8")


def run(*words: object) -> None:
    """One command of `xlmr-ray`, in this process."""
    given = list(map(str, words))
    print(f"\n$ xlmr-ray {shlex.join(given)}", flush=True)
    app(given, standalone_mode=False)


def show(rows: pa.Table) -> None:
    """What may be relied on, and what to label next: the rows whose best score is nowhere near its threshold."""
    above = rows.filter(pc.fill_null(rows["above"], False))
    right = pc.sum(pc.equal(above["label"], above["family"])).as_py() or 0
    print(f"\n{len(above):,} of {len(rows):,} articles are above their threshold, {right:,} of them rightly")
    for row in rows.sort_by("score").slice(0, 3).to_pylist():
        print(f"  to label next: {row['score']:.3f} {row['label']:8} {row['source']} row {row['row']}")


def ask(head: Path, text: str) -> None:
    """Starts the service, asks once, and stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--model", str(head), "--task", TASK, "--port", str(port)]
    print(f"\n$ xlmr-ray {shlex.join(words)}", flush=True)
    server = subprocess.Popen([sys.executable, "-m", "xlmr_ray", *words], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until_ready(server, f"{url}/health")
        body = json.dumps({"inputs": text, "parameters": {"top_k": 1}}).encode()
        asked = urllib.request.Request(f"{url}/tasks/{TASK}", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as reply:
            print(f"$ curl {url}/tasks/{TASK} -d '{{\"inputs\": …}}'\n{reply.read().decode()}")
    finally:
        server.terminate()
        server.wait(60)


def until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"the service ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the service did not start in 5 minutes")


if __name__ == "__main__":
    main()
