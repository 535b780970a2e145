"""Both recipes, from packages to assets: `python -m pipelines.mini [WORK]` (default .cache/mini; `make mini`).

Needs a Debian 12 machine with its package index (`apt-get update`), npm and pip. The text that is in WORK already is
not made again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "xlmr_ray" / "assets"
PIECES, CHARACTERS = "14500", "250000"  # of embedded:help: what the wheel has room for


def step(script: str, *arguments: Path | str) -> None:
    command = [str(HERE / script), *map(str, arguments)]
    print("$", *command, flush=True)
    subprocess.run(command if script.endswith(".sh") else [sys.executable, *command], check=True)


def main(work: Path) -> None:
    text, mini, udhr = work / "text.parquet", ASSETS / "mini", ASSETS / "udhr"
    if not (work / "versions.txt").exists():
        step("fetch.sh", work)
    step("make_corpus.py", work / "src" / "udhr", udhr)
    if not text.exists():
        step("make_text.py", work / "src", text)
    step("make_tokenizer.py", text, mini)
    step("train.py", text, mini)
    step("heads.py", text, mini)
    step("make_pairs.py", udhr, ASSETS / "udhr-pairs")
    step("evaluate.py", mini, "--corpus", udhr, "--text", text)
    embedded_help(work)


def embedded_help(work: Path) -> None:
    """The encoder of help pages, and its head by the product's own command."""
    pages, topics, folder = work / "help.parquet", work / "topics", ASSETS / "help"
    if not pages.exists():
        step("make_help.py", work / "src", pages)
    step("make_tokenizer.py", pages, folder, PIECES, CHARACTERS)
    step("train_help.py", pages, folder)
    step("make_topics.py", pages, topics)
    head = folder / "heads" / "topic"
    shutil.rmtree(head, ignore_errors=True)
    data = ("--set", f"train.path={topics / 'train.parquet'}", "--model", folder, "--output", head)
    subprocess.run([sys.executable, "-m", "xlmr_ray", "finetune", HERE / "topic.yaml", *data], check=True)
    for record in ("training.json", "training.html"):
        (head / record).unlink()
    step("evaluate_help.py", pages, topics, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".cache/mini"))
