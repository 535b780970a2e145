"""How sure a head is in languages of which it has seen no label, without and with a temperature from labelled rows of
the languages that it was trained on; and whether thresholds for a precision keep it there.

Pages of `--train-languages` are for the training and for the calibration, others in other languages for the test: no
page of one part is a translation of a page of another.
usage: python -m tests.benchmarks.calibration --model FOLDER --input FILE.parquet --state FOLDER [--seeds N]
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import beta

from tests.benchmarks.finetune import arguments_of_pages
from xlmr_ray import pipeline
from xlmr_ray.train.measures.calibration_error import calibration_error

PRECISION = 0.9
# Of the pages: for the training, for the calibration, and the rest for the test.
SHARES = 0.5, 0.25


def split(source: Path, state: Path, languages: list[str], tests: list[str], rows: int, seed: int) -> None:
    """Writes train.parquet, held.parquet and test.parquet."""
    table = pq.read_table(source, columns=["lang", "topic", "page", "text"]).to_pylist()
    random = np.random.default_rng(seed)
    pages = random.permutation(sorted({row["page"] for row in table})).tolist()
    ends = [int(len(pages) * share) for share in np.cumsum(SHARES)]
    parts = {"train": set(pages[: ends[0]]), "held": set(pages[ends[0] : ends[1]]), "test": set(pages[ends[1] :])}
    found = {
        name: [r for r in table if r["page"] in own and r["lang"] in (tests if name == "test" else languages)]
        for name, own in parts.items()
    }
    found["train"] = [found["train"][i] for i in random.permutation(len(found["train"]))[:rows]]
    known = {row["topic"] for row in found["train"]}
    for name, own in found.items():
        own = [row for row in own if row["topic"] in known]
        pq.write_table(pa.Table.from_pylist(own), state / f"{name}.parquet")
        print(f"{name}: {len(own)} rows of {len({row['page'] for row in own})} pages", flush=True)


def command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "xlmr_ray", *map(str, words)], check=True)


def trained(model: Path, state: Path, tokens: int, seed: int) -> Path:
    """A head, calibrated."""
    output = state / "head"
    shutil.rmtree(output, ignore_errors=True)
    job = {
        "model": str(model),
        "task": "text-classification",
        "method": "head",
        "options": {"max_length": tokens},
        "train": {"path": str(state / "train.parquet"), "label": "topic", "language": "lang", "document": "page"},
        "output": {"path": str(output)},
        "epochs": 30,
        "learning_rate": 5e-3,
        "seed": seed,
    }
    (state / "head.yaml").write_text(json.dumps(job), "utf-8")
    command("finetune", state / "head.yaml", "--quiet")
    held = ("--data", state / "held.parquet", "--column", "label=topic", "--option", f"max_length={tokens}")
    command("calibrate", "text-classification", "--model", output, *held, "--precision", PRECISION)
    return output


def measure(head: Path, test: Path, tokens: int) -> list[dict[str, float | str]]:
    """By language: rows, accuracy, the calibration error without and with the temperature, and what is above."""
    rows = pq.read_table(test).to_pydict()
    pipe = pipeline("text-classification", head, max_length=tokens, top_k=None)
    answers = pipe(rows["text"])
    names = sorted(one["label"] for one in answers[0])
    scores = np.array([[{o["label"]: o["score"] for o in answer}[name] for name in names] for answer in answers])
    above = np.array(
        [[bool({o["label"]: o.get("above") for o in answer}[name]) for name in names] for answer in answers]
    )
    temperature = json.loads((head / "calibration.json").read_text("utf-8"))["text-classification"].get(
        "temperature", 1
    )
    plain = np.log(np.maximum(scores, 1e-30)) * temperature
    plain = np.exp(plain - plain.max(1, keepdims=True))
    plain /= plain.sum(1, keepdims=True)
    is_label = np.array([[topic == name for name in names] for topic in rows["topic"]])
    right = is_label[np.arange(len(scores)), scores.argmax(1)]
    found: list[dict[str, float | str]] = []
    languages = np.array(rows["lang"])
    for language in [*np.unique(languages).tolist(), "all"]:
        own = languages == language if language != "all" else np.ones(len(languages), bool)
        kept = int(above[own].sum())
        good = int((above & is_label)[own].sum())
        found.append(
            {
                "language": language,
                "rows": int(own.sum()),
                "accuracy": float(right[own].mean()),
                "before": calibration_error(plain[own].max(1), right[own]),
                "after": calibration_error(scores[own].max(1), right[own]),
                "above": kept,
                "precision": good / kept if kept else float("nan"),
                "low": float(beta.ppf(0.025, good, kept - good + 1)) if good else 0.0,
                "high": float(beta.ppf(0.975, good + 1, kept - good)) if good < kept else 1.0,
            }
        )
    return found


def main() -> None:
    arguments = arguments_of_pages(seeds=1).parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        languages, tests = arguments.train_languages.split(","), arguments.test_languages.split(",")
        split(arguments.input, arguments.state, languages, tests, arguments.rows, seed)
        head = trained(arguments.model, arguments.state, arguments.tokens, seed)
        print(f"seed {seed}: language, rows, accuracy, calibration error before and after, precision of what is above")
        for one in measure(head, arguments.state / "test.parquet", arguments.tokens):
            print(
                f"{one['language']:8}{one['rows']:5}{one['accuracy']:8.3f}{one['before']:8.4f}{one['after']:8.4f}"
                f"{one['precision']:8.3f} ({one['low']:.3f} to {one['high']:.3f}) of {one['above']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
