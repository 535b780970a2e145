"""Texts for the tasks on sentences: many languages, and what breaks tokenizers."""

from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import xlmr_ray
from xlmr_ray import XLMRobertaTokenizer
from xlmr_ray.tasks.encoded import targets_of

UDHR = Path(xlmr_ray.__file__).parent / "assets" / "udhr"
ODD = [
    "a",
    " ",
    "👩‍👩‍👧 🇫🇷 é e\u0301",
    "</s>",
    "\u202eabc\u202c العربية 12",
    "人人生而自由,在尊严和权利上一律平等。",
    "<pad> a <pad><pad> padding id, as a text may say it",
    "many words " * 60,
]


@cache
def tokenizer_of(side: str = "right") -> XLMRobertaTokenizer:
    """The embedded tokenizer, loaded once for all examples of a property."""
    return XLMRobertaTokenizer.from_pretrained("embedded:mini", truncation_side=side)


@cache
def languages() -> dict[str, list[str]]:
    """Language -> its articles of the embedded corpus, of as many languages as three of its files hold."""
    out: dict[str, list[str]] = {}
    for part in sorted(UDHR.glob("*.parquet"))[:3]:
        table = pq.read_table(part, columns=["lang", "text"])
        for lang, text in zip(table["lang"].to_pylist(), table["text"].to_pylist(), strict=True):
            out.setdefault(lang, []).append(text)
    return out


def corpus() -> list[str]:
    """A text of each language, some longer than the small checkpoints' 64 tokens, and the odd ones."""
    return [articles[place % 3] for place, articles in enumerate(languages().values())] + ODD


def answers(pipe, **columns):
    """What the task answers to columns of texts."""
    given = pa.table(columns)
    encoded = pipe.task.prepare(given, pipe.tokenizer)
    results = pipe.engine.run(encoded["input_ids"], targets_of(encoded))
    assert not results.failed
    table = pipe.task.postprocess(results.raw[0], encoded)
    assert table.schema == pipe.task.schema
    assert table.num_rows == given.num_rows
    return pipe.task.answers(table, given)
