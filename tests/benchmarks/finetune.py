"""Training on a few labelled pages by `xlmr-ray finetune` and by transformers' Trainer, in turn: how long each takes,
and how good it is in languages of which it has seen no label.

The test has pages in other languages, none of which is a translation of a page that was trained on. Each seed is a
round: the Trainer, `method: full` and `method: head` from the same rows in a file to a saved folder, each in a process.
What was measured is kept in `--state`, and another call goes on with it, so that a round may take several. Beside the
time the processor's time is shown (threads that wait sleep), for a machine where others work, too.
usage: python -m tests.benchmarks.finetune --model FOLDER --input FILE.parquet --state FOLDER [--seeds N] [--tokens N]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METHODS = ("trainer", "full", "head")
# As both have them by default, but the rate and the size of a batch: 400 rows make few steps.
BATCH, RATE, WARMUP, DECAY = 16, 1e-4, 0.06, 0.01
HEAD_RATE = 5e-3


def split(source: Path, folder: Path, languages: list[str], tests: list[str], rows: int, per_language: int) -> None:
    """Writes train.parquet and test.parquet: some of the pages in the languages, the others in those of the test."""
    table = pq.read_table(source, columns=["id", "lang", "topic", "page", "text"]).to_pylist()
    random = np.random.default_rng(0)
    pages = random.permutation(sorted({row["page"] for row in table}))
    trained = set(pages[: int(len(pages) * 0.65)].tolist())
    most = {**dict.fromkeys(languages, rows // len(languages)), **dict.fromkeys(tests, per_language)}
    chosen: dict[str, list[dict[str, str]]] = {language: [] for language in most}
    for row in (table[i] for i in random.permutation(len(table))):
        language = row["lang"]
        fits = language in most and (row["page"] in trained) == (language in languages)
        if fits and len(chosen[language]) < most[language]:
            chosen[language].append(row)
    known = {row["topic"] for language in languages for row in chosen[language]}
    for name, part in (("train", languages), ("test", tests)):
        found = [row for language in part for row in chosen[language] if row["topic"] in known]
        pq.write_table(pa.Table.from_pylist(found), folder / f"{name}.parquet")
        print(f"{name}: {len(found)} rows, {len({row['page'] for row in found})} pages, {', '.join(part)}")


@dataclass(frozen=True)
class Work:
    """What all methods do: so many `epochs` over the rows in `data`, cut to `tokens`."""

    model: Path
    data: Path
    output: Path
    seed: int
    tokens: int
    epochs: float
    head_epochs: float


def by_finetune(method: str, work: Work) -> tuple[float, float]:
    """Seconds of the command's own work, without the start of Python; and of the processor."""
    from rich.console import Console

    from xlmr_ray.batch.input.whole import read_whole
    from xlmr_ray.text.progress_line import ProgressLine
    from xlmr_ray.train.finetune import finetune
    from xlmr_ray.train.job import check_finetune_job

    job = {
        "model": str(work.model),
        "task": "text-classification",
        "options": {"max_length": work.tokens},
        "train": {"path": str(work.data), "label": "topic"},
        "method": method,
        "epochs": work.head_epochs if method == "head" else work.epochs,
        "batch_size": BATCH,
        "learning_rate": HEAD_RATE if method == "head" else RATE,
        "warmup": WARMUP,
        "weight_decay": DECAY,
        "seed": work.seed,
        "output": {"path": str(work.output)},
    }
    checked = check_finetune_job(job, "job")
    started = time.perf_counter(), time.process_time()
    with ProgressLine(Console(stderr=True), "steps", quiet=True) as display:
        finetune(checked, read_whole, display)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def by_trainer(work: Work) -> tuple[float, float]:
    """As transformers' own example of text classification calls it, with dynamic padding."""
    import transformers

    started = time.perf_counter(), time.process_time()
    rows = pq.read_table(work.data).to_pydict()
    names = sorted(set(rows["topic"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.model)
    inputs = tokenizer(rows["text"], truncation=True, max_length=work.tokens)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": names.index(label)}
        for ids, mask, label in zip(inputs["input_ids"], inputs["attention_mask"], rows["topic"], strict=True)
    ]
    steps = -(-len(examples) // BATCH) * work.epochs
    arguments = transformers.TrainingArguments(
        output_dir=str(work.output.parent / "trainer"),
        num_train_epochs=work.epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=int(WARMUP * round(steps)),
        weight_decay=DECAY,
        seed=work.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.set_seed(work.seed)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        work.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    trainer = transformers.Trainer(
        network,
        arguments,
        train_dataset=examples,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model(str(work.output))
    tokenizer.save_pretrained(work.output)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def accuracies(folder: Path, data: Path, tokens: int) -> dict[str, float]:
    """The share of rows with the right label, by language."""
    from xlmr_ray import pipeline

    rows = pq.read_table(data).to_pydict()
    answers = pipeline("text-classification", folder, max_length=tokens)(rows["text"])
    right = np.array([a["label"] == topic for a, topic in zip(answers, rows["topic"], strict=True)])
    languages = np.array(rows["lang"])
    return {str(name): float(right[languages == name].mean()) for name in np.unique(languages)}


def one(method: str, seed: int, arguments: argparse.Namespace) -> None:
    """One training, measured and tested; in a process of its own."""
    import torch

    torch.set_num_threads(arguments.threads)
    state = arguments.state
    output = state / f"{method}-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    data = state / "train.parquet"
    epochs, head_epochs = arguments.epochs, arguments.head_epochs or arguments.epochs
    work = Work(arguments.model, data, output, seed, arguments.tokens, epochs, head_epochs)
    seconds, cpu = by_trainer(work) if method == "trainer" else by_finetune(method, work)
    accuracy = accuracies(output, state / "test.parquet", arguments.tokens) if arguments.test_rows else {}
    found = {"seconds": seconds, "cpu": cpu, "accuracy": accuracy}
    shutil.rmtree(output)
    (state / f"{method}-{seed}.json").write_text(json.dumps(found), "utf-8")


def show(state: Path, seeds: int) -> None:
    """A line a round, then the ratios and the accuracies by language: mean and spread over the seeds."""
    rounds = []
    for seed in range(seeds):
        files = {method: state / f"{method}-{seed}.json" for method in METHODS}
        if all(file.exists() for file in files.values()):
            rounds.append({method: json.loads(file.read_text("utf-8")) for method, file in files.items()})
            cells = [f"{m} {one['seconds']:.1f} s, {one['cpu']:.1f} of the processor" for m, one in rounds[-1].items()]
            print(f"round {seed}: {'; '.join(cells)}")
    if not rounds:
        return
    for kind in ("seconds", "cpu"):
        for method in METHODS[1:]:
            ratios = [found["trainer"][kind] / found[method][kind] for found in rounds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{method}, by {kind}: {spread} times as fast as the Trainer")
    if not rounds[0]["trainer"]["accuracy"]:
        return
    for found in rounds:
        found.update({m: {**one, "accuracy": {**one["accuracy"], "all": mean(one)}} for m, one in found.items()})
    print(f"{'accuracy':10}" + "".join(f"{method:>22}" for method in METHODS) + f"{'full less trainer':>22}")
    for language in rounds[0]["trainer"]["accuracy"]:
        each = {method: [found[method]["accuracy"][language] for found in rounds] for method in METHODS}
        cells = [f"{statistics.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in each.values()]
        less = statistics.mean(each["full"]) - statistics.mean(each["trainer"])
        print(f"{language:10}" + "".join(f"{cell:>22}" for cell in cells) + f"{less:>+22.3f}")


def mean(found: dict[str, dict[str, float]]) -> float:
    """Over the languages."""
    return statistics.mean(found["accuracy"].values())


def arguments_of_pages(*, seeds: int) -> argparse.ArgumentParser:
    """Of a benchmark that trains on pages in some languages, and tests in others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True, help="Parquet with lang, topic, page, text")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--train-languages", default="de,en-us,es,fr")
    parser.add_argument("--test-languages", default="cs,el,eu,fi,hi,ja,ko,ru,tr,zh-cn")
    return parser


def main() -> None:
    parser = arguments_of_pages(seeds=3)
    parser.add_argument("--epochs", type=float, default=3.0, help="of the Trainer and of method: full")
    parser.add_argument("--head-epochs", type=float, help="default: as many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test-rows", type=int, default=60, help="of each language")
    parser.add_argument("--seconds", type=float, default=1e9, help="begins nothing more after so many")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], int(arguments.one[1]), arguments)
        return
    started = time.perf_counter()
    arguments.state.mkdir(parents=True, exist_ok=True)
    if not (arguments.state / "test.parquet").exists():
        languages, tests = arguments.train_languages.split(","), arguments.test_languages.split(",")
        split(arguments.input, arguments.state, languages, tests, arguments.rows, arguments.test_rows)
    for seed in range(arguments.seeds):
        for method in METHODS:
            if (arguments.state / f"{method}-{seed}.json").exists():
                continue
            if time.perf_counter() - started > arguments.seconds:
                break
            command = [sys.executable, "-m", "tests.benchmarks.finetune", *sys.argv[1:], "--one", method, str(seed)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    show(arguments.state, arguments.seeds)


if __name__ == "__main__":
    main()
