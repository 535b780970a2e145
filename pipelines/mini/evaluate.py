"""Accuracy of a language classifier by language: on documents of held-out training text and on the sample corpus.

    python pipelines/mini/evaluate.py xlmr_ray/assets/mini --corpus xlmr_ray/assets/udhr [--text WORK/text.parquet]

Prints Markdown. Rows of the corpus in a language that the checkpoint was not trained on (not in `id2label`) are left
out of the accuracy and named.
"""

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from documents import Documents
from tokenizers import Tokenizer
from train import MAX_LENGTH, collate

from xlmr_ray import XLMRobertaForSequenceClassification

LONGER = 100
Rows = list[tuple[str, str]]  # language, text


@torch.inference_mode()
def predict(model: XLMRobertaForSequenceClassification, tokenizer: Tokenizer, rows: Rows) -> list[str]:
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast([text for _, text in rows])]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    found = [""] * len(rows)
    for start in range(0, len(order), 32):
        chunk = order[start : start + 32]
        ids, mask, _ = collate([encoded[i] for i in chunk], [0] * len(chunk))
        for i, label in zip(chunk, model(ids, attention_mask=mask).logits.argmax(-1).tolist(), strict=True):
            found[i] = model.config.labels[label]
    return found


def score(rows: Rows, found: list[str]) -> tuple[float, dict[str, tuple[int, int, Counter[str]]]]:
    """The accuracy over all, and for each language the right ones, the number and what the others were called."""
    table: dict[str, tuple[int, int, Counter[str]]] = defaultdict(lambda: (0, 0, Counter()))
    for (lang, _), label in zip(rows, found, strict=True):
        right, total, wrong = table[lang]
        wrong.update([label] if label != lang else [])
        table[lang] = (right + (label == lang), total + 1, wrong)
    return sum(right for right, _, _ in table.values()) / len(rows), dict(sorted(table.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    model = XLMRobertaForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)

    results = {}
    sizes: Counter[str] = Counter()
    table = ds.dataset(args.corpus, format="parquet", exclude_invalid_files=True).to_table(columns=["lang", "text"])
    everything = list(zip(table["lang"].to_pylist(), table["text"].to_pylist(), strict=True))
    rows = [row for row in everything if row[0] in model.config.labels]
    results["sample corpus"] = (len(rows), *score(rows, predict(model, tokenizer, rows)))
    if args.text:
        documents, rng = Documents(args.text, held_out=True, leave_out=set()), random.Random(23)
        rows = [(lang, documents.draw(lang, rng)) for lang in documents.languages for _ in range(100)]
        for strings in pq.read_table(args.text, columns=["lang", "text"], filters=~pc.field("held_out")).to_batches():
            for lang, string in zip(*(column.to_pylist() for column in strings.columns), strict=True):
                sizes[lang] += len(string)
        found = predict(model, tokenizer, rows)
        results["held-out text"] = (len(rows), *score(rows, found))
        longer = [i for i, (_, text) in enumerate(rows) if len(text) >= LONGER]
        name = f"held-out text of {LONGER} characters or more"
        results[name] = (len(longer), *score([rows[i] for i in longer], [found[i] for i in longer]))

    print(f"Trained on {len(model.config.labels)} languages: {' '.join(model.config.labels)}\n")
    absent = sorted({lang for lang, _ in everything} - set(model.config.labels))
    print(f"In the corpus and not trained on: {' '.join(absent) or 'none'}\n")
    for name, (count, accuracy, _) in results.items():
        print(f"{name}: {100 * accuracy:.2f} % of {count} documents\n")
    print(
        "| language | trained on, thousand characters | " + " | ".join(results) + " | called instead (sample corpus) |"
    )
    print("| --- | ---: | " + "---: | " * len(results) + "--- |")
    for lang in model.config.labels:
        cells = [str(sizes[lang] // 1000) if sizes else ""]
        for _, _, by_language in results.values():
            right, total, _ = by_language.get(lang, (0, 0, Counter()))
            cells.append(f"{100 * right / total:.1f}" if total else "")
        wrong = results["sample corpus"][2].get(lang, (0, 0, Counter()))[2]
        cells.append(", ".join(f"{label} {n}" for label, n in wrong.most_common(3)))
        print(f"| {lang} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
