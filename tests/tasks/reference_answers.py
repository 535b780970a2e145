"""What transformers' question-answering pipeline answers, as a file: later versions than 4.57 do not have it any more.

python -m venv old && old/bin/pip install transformers==4.57.6 torch pyarrow
old/bin/python tests/tasks/reference_answers.py > tests/tasks/data/reference_answers.json
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file

ASSETS = Path(__file__).parents[2] / "xlmr_ray" / "assets"
LENGTH = 128
CRAFTED = [
    ("Where do I live?", "My name is Wolfgang and I live in Berlin. Berlin is large; berlin, BERLIN!"),
    ("?", "one"),
    ("Who?", "Me"),
    (" ", "Nobody asks anything here."),
    ("What is missing?", " "),
    ("What is missing?", "\u200b"),
    ("什么?", "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"),
    ("どこ？", "東京 タワー　と富士山"),
    ("أين؟", "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق."),
    ("איפה?", "כל בני אדם נולדו בני חורין \u202bשווים\u202c בערכם ובזכויותיהם."),
    ("Emoji?", "👩‍👩‍👧 🇫🇷 é e\u0301 ½ ﷺ ㎏ ☃☃ x☃y"),
    ("Welche?", "Donaudampfschifffahrtsgesellschaftskapitän, unconstitutionally Rindfleischetikettierungsgesetz"),
    ("a</s>b", "one </s> two <mask> three <s> four <unk> five<mask>six"),
    ("tabs?", "tabs\tand\nlines\r\n and  many   spaces "),
    ("a b a b", "a b a b a b A B"),
]
# Options, which pairs of articles (every so many languages, from so many on), and whether crafted pairs, too.
CASES: list[tuple[dict[str, Any], tuple[int, int], bool]] = [
    ({}, (2, 0), True),
    ({"top_k": 5}, (3, 0), True),
    ({"top_k": 3, "align_to_words": False}, (3, 1), True),
    ({"align_to_words": False}, (3, 2), True),
    ({"handle_impossible_answer": True}, (4, 0), True),
    ({"handle_impossible_answer": True, "top_k": 4}, (4, 1), True),
    ({"max_answer_len": 1}, (4, 2), True),
    ({"max_answer_len": 60, "top_k": 2}, (4, 3), False),
    ({"max_answer_len": 1000}, (12, 3), False),
    ({"max_seq_len": 80, "doc_stride": 0}, (4, 0), True),
    ({"max_seq_len": 80, "doc_stride": 9, "top_k": 3}, (4, 1), True),
    ({"doc_stride": 50, "handle_impossible_answer": True}, (4, 2), False),
]


def save_checkpoint(folder: Path) -> Path:
    """A span model with random weights, whatever library reads them."""
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = len(json.loads((ASSETS / "mini" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    config = {"model_type": "xlm-roberta", "vocab_size": vocabulary, "max_position_embeddings": LENGTH + 2}
    config |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "num_labels": 2, **shape}
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["XLMRobertaForQuestionAnswering"]}))
    random = np.random.default_rng(5)

    def product(name: str, out: int, into: int) -> dict[str, Any]:
        weight = random.normal(0, 0.3, (out, into)).astype(np.float32)
        return {f"{name}.weight": weight, f"{name}.bias": random.normal(0, 0.3, out).astype(np.float32)}

    def norm(name: str) -> dict[str, Any]:
        return {f"{name}.weight": np.ones(48, np.float32), f"{name}.bias": np.zeros(48, np.float32)}

    tensors = product("qa_outputs", 2, 48)
    for name, rows in (("word", vocabulary), ("position", LENGTH + 2), ("token_type", 1)):
        weight = random.normal(0, 0.3, (rows, 48)).astype(np.float32)
        tensors[f"roberta.embeddings.{name}_embeddings.weight"] = weight
    tensors |= norm("roberta.embeddings.LayerNorm")
    for number in range(2):
        layer = f"roberta.encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= product(f"{layer}.attention.{name}", 48, 48)
        tensors |= norm(f"{layer}.attention.output.LayerNorm") | product(f"{layer}.intermediate.dense", 64, 48)
        tensors |= product(f"{layer}.output.dense", 48, 64) | norm(f"{layer}.output.LayerNorm")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((ASSETS / "mini" / name).read_bytes())
    return folder


@cache
def articles() -> list[tuple[str, str]]:
    """In each language, article 3 or the beginning of another one as the question, and a context of articles 18 and 19;
    of every tenth language, of all articles.
    """
    table = pq.read_table(sorted((ASSETS / "udhr").glob("*.parquet")), columns=["code", "article", "text"])
    texts: dict[str, dict[int, str]] = {}
    for row in table.to_pylist():
        texts.setdefault(row["code"], {})[row["article"]] = row["text"]
    pairs = []
    for place, code in enumerate(sorted(texts)):
        mine = texts[code]
        question = mine.get(3, min(mine.values(), key=len))[:60]
        wanted = sorted(mine) if place % 10 == 0 else [number for number in (18, 19) if number in mine]
        pairs.append((question, "\n".join(mine[number] for number in wanted or sorted(mine))))
    return pairs


def pairs_of(case: int) -> list[tuple[str, str]]:
    """The questions and contexts of a case."""
    _, (step, begin), crafted = CASES[case]
    return [*(CRAFTED if crafted else []), *articles()[begin::step]]


def main() -> None:
    import transformers
    from transformers import QuestionAnsweringPipeline, XLMRobertaForQuestionAnswering, XLMRobertaTokenizerFast

    with tempfile.TemporaryDirectory() as name:
        folder = save_checkpoint(Path(name))
        model = XLMRobertaForQuestionAnswering.from_pretrained(folder)
        tokenizer = XLMRobertaTokenizerFast.from_pretrained(folder, model_max_length=LENGTH)
        pipe = QuestionAnsweringPipeline(model, tokenizer, device="cpu")
        results = []
        for case, (options, _, _) in enumerate(CASES):
            answers = []
            for question, context in pairs_of(case):
                answer = pipe(question=question, context=context, **options)
                several = answer if isinstance(answer, list) else [answer]
                answers.append([[round(one["score"], 7), one["start"], one["end"], one["answer"]] for one in several])
            results.append({"options": options, "answers": answers})
    made_by = f"transformers {transformers.__version__}: {Path(__file__).name}"
    sys.stdout.write(json.dumps({"made_by": made_by, "results": results}, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
