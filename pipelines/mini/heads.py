"""Trains small heads on the frozen encoder of embedded:mini, one for each kind of task, to try and to copy.

    python pipelines/mini/heads.py WORK/text.parquet xlmr_ray/assets/mini [--steps N]

They are demonstrations: their labels are made from the text itself by rules, and an encoder of two layers that was
trained to tell languages apart knows no more than its kind. All heads but one kind read the same pass of the encoder.

- `script`: which writing system most letters of a text are of
- `entities`: the stretches of a text in each writing system
- `masked`: the hidden piece (the language modelling head)
- `answers`: the first number of the context, whatever the question
- `entailment`, `relevance`, `choice`: whether two texts are of one language
"""

import argparse
import random
import re
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from documents import SPACELESS, Documents
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray import (
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.model.losses import lm_loss, question_answering_loss

BATCH = 32
MAX_LENGTH = 128
HIDDEN_PIECES = 0.15
NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
QUESTIONS = ["Which number?", "¿Qué número?", "Quel nombre ?", "Welche Zahl?", "哪个数字?", "Какое число?", "أي رقم؟"]


def script(text: str) -> str:
    """The writing system of most letters, by the first word of their Unicode names."""
    names = Counter(unicodedata.name(c, "NONE").split()[0].title() for c in text if c.isalpha())
    return names.most_common(1)[0][0] if names else "None"


def marked(text: str, offsets: list[tuple[int, int]], labels: dict[str, int]) -> list[int]:
    """The writing system of each token's first letter, "O" without one, -100 for the special tokens."""
    out = []
    for start, end in offsets:
        letters = "".join(c for c in text[start:end] if c.isalpha())[:1]
        out.append(labels.get(script(letters), 0) if end > start else -100)
    return out


@dataclass
class Heads:
    """Models on one encoder, which none of them trains."""

    script: XLMRobertaForSequenceClassification
    entities: XLMRobertaForTokenClassification
    masked: XLMRobertaForMaskedLM
    answers: XLMRobertaForQuestionAnswering
    entailment: XLMRobertaForSequenceClassification
    relevance: XLMRobertaForSequenceClassification
    choice: XLMRobertaForMultipleChoice


def states(heads: Heads, ids: Tensor, mask: Tensor) -> Tensor:
    """The encoder's last hidden states `(B, S, hidden)`."""
    encoder: Any = heads.script.roberta
    hidden: Tensor = encoder(ids, mask).last_hidden_state
    return hidden


def models(base: XLMRobertaModel, scripts: list[str]) -> Heads:
    def config(labels: list[str], problem: str | None = None) -> XLMRobertaConfig:
        values = base.config.to_dict()
        for name in ("id2label", "label2id", "problem_type"):
            values.pop(name)
        return XLMRobertaConfig.from_dict(values, id2label=dict(enumerate(labels)), problem_type=problem)

    heads = Heads(
        script=XLMRobertaForSequenceClassification(config(scripts, "single_label_classification")),
        entities=XLMRobertaForTokenClassification(config(["O", *scripts])),
        masked=XLMRobertaForMaskedLM(config(["LABEL_0"])),
        answers=XLMRobertaForQuestionAnswering(config(["LABEL_0", "LABEL_1"])),
        entailment=XLMRobertaForSequenceClassification(
            config(["contradiction", "entailment"], "single_label_classification")
        ),
        relevance=XLMRobertaForSequenceClassification(config(["LABEL_0"], "single_label_classification")),
        choice=XLMRobertaForMultipleChoice(config(["LABEL_0"])),
    )
    for model in vars(heads).values():
        pooler = model.roberta.pooler
        model.roberta = base
        if pooler is not None:  # the choice's own
            model.pooler = pooler
    heads.masked.lm_head.decoder.weight = base.embeddings.word_embeddings.weight
    return heads


def single_losses(heads: Heads, tokenizer: XLMRobertaTokenizer, documents: Documents, rng: random.Random) -> Tensor:
    """Of the heads on one text: one pass for all three."""
    texts = [documents.draw(rng.choice(documents.languages), rng) for _ in range(BATCH)]
    for place in range(0, BATCH, 2):  # half of them in two languages
        cut = rng.randrange(8, 80)
        texts[place] = texts[place][:cut] + " " + documents.draw(rng.choice(documents.languages), rng)
    coded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_offsets_mapping=True)
    ids = torch.tensor(coded["input_ids"])
    mask = torch.tensor(coded["attention_mask"])
    assert heads.entities.config.label2id is not None
    entities = [
        marked(text, offsets, heads.entities.config.label2id)
        for text, offsets in zip(texts, coded["offset_mapping"], strict=True)
    ]
    hidden_pieces = (torch.rand(ids.shape) < HIDDEN_PIECES) & (ids > 3)
    wanted = ids.masked_fill(~hidden_pieces, -100)
    with torch.no_grad():
        plain = states(heads, ids, mask)
        holed = states(heads, ids.masked_fill(hidden_pieces, tokenizer.mask_token_id), mask)
    assert heads.script.config.label2id is not None
    scripts = torch.tensor([heads.script.config.label2id.get(script(text), -100) for text in texts])
    return (
        F.cross_entropy(heads.script.classifier(plain[:, 0]), scripts)
        + F.cross_entropy(heads.entities.classifier(plain).flatten(0, 1), torch.tensor(entities).flatten())
        + lm_loss(holed, wanted, heads.masked.lm_head)
    )


def pair_losses(heads: Heads, tokenizer: XLMRobertaTokenizer, documents: Documents, rng: random.Random) -> Tensor:
    """Of the heads on two texts: half of the pairs are of one language, each beside its opposite."""
    firsts, seconds = [], []
    for _ in range(BATCH // 2):
        one, other = rng.sample(documents.languages, 2)
        first = documents.draw(one, rng)[:200]
        for lang in (one, other):
            firsts.append(first)
            seconds.append(documents.draw(lang, rng)[: rng.randrange(8, 200)])
    ids, mask = coded_pairs(tokenizer, firsts, seconds)
    with torch.no_grad():
        hidden = states(heads, ids, mask)
    same = torch.tensor([1, 0] * (BATCH // 2))
    pooler: Any = heads.choice.pooler
    choice = heads.choice.classifier(pooler(hidden[:, 0]))
    loss = F.cross_entropy(heads.entailment.classifier(hidden[:, 0]), same)
    loss = loss + F.binary_cross_entropy_with_logits(heads.relevance.classifier(hidden[:, 0])[:, 0], same.float())
    return loss + F.cross_entropy(choice.view(-1, 2), torch.zeros(BATCH // 2, dtype=torch.long))


def coded_pairs(tokenizer: XLMRobertaTokenizer, firsts: list[str], seconds: list[str]) -> tuple[Tensor, Tensor]:
    coded = tokenizer(firsts, seconds, truncation=True, max_length=MAX_LENGTH, padding=True)
    return torch.tensor(coded["input_ids"]), torch.tensor(coded["attention_mask"])


def answer_loss(heads: Heads, tokenizer: XLMRobertaTokenizer, documents: Documents, rng: random.Random) -> Tensor:
    questions = [rng.choice(QUESTIONS) for _ in range(BATCH)]
    contexts = []
    for i in range(BATCH):
        lang = rng.choice(documents.languages)
        context = documents.draw(lang, rng)
        if i % 2 and not NUMBER.search(context):
            words = context.split(" ")
            words.insert(rng.randrange(len(words) + 1), str(rng.randrange(1, 3000)))
            context = ("" if lang in SPACELESS else " ").join(words)
        contexts.append(context)
    coded = tokenizer(
        questions, contexts, truncation="only_second", max_length=MAX_LENGTH, padding=True, return_offsets_mapping=True
    )
    starts, ends = [], []
    for row, context in enumerate(contexts):
        found = NUMBER.search(context)
        tokens = [
            place
            for place, (sequence, (start, end)) in enumerate(
                zip(coded.sequence_ids(row), coded["offset_mapping"][row], strict=True)
            )
            if found and sequence == 1 and start < found.end() and end > found.start() and end > start
        ]
        starts.append(tokens[0] if tokens else 0)
        ends.append(tokens[-1] if tokens else 0)
    ids, mask = torch.tensor(coded["input_ids"]), torch.tensor(coded["attention_mask"])
    with torch.no_grad():
        hidden = states(heads, ids, mask)
    start_logits, end_logits = heads.answers.qa_outputs(hidden).unbind(-1)
    # Beyond the window of the text nothing can be the answer.
    hidden_from = torch.finfo(start_logits.dtype).min
    start_logits, end_logits = (x.masked_fill(mask == 0, hidden_from) for x in (start_logits, end_logits))
    return question_answering_loss(start_logits, end_logits, torch.tensor(starts), torch.tensor(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("mini", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(7)
    torch.set_num_threads(args.threads)
    rng = random.Random(7)
    documents = Documents(args.text, held_out=False, leave_out=set())
    tokenizer = XLMRobertaTokenizer.from_pretrained(args.mini)
    base = XLMRobertaModel.from_pretrained(args.mini, dtype=torch.float32, add_pooling_layer=False)
    base.requires_grad_(False)
    scripts = sorted({script(text) for lang in documents.languages for text in documents.sample(lang, 200)} - {"None"})
    heads = models(base, scripts)
    single = {id(p): p for model in (heads.entities, heads.answers) for p in model.parameters() if p.requires_grad}
    deeper = {id(p): p for model in vars(heads).values() for p in model.parameters() if p.requires_grad}
    groups = [
        {"params": list(single.values()), "lr": 2e-2},  # one product each
        {"params": [p for key, p in deeper.items() if key not in single], "lr": 2e-3},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / args.steps)
    start = time.perf_counter()
    mean = torch.zeros(3)
    for step in range(1, args.steps + 1):
        losses = [loss(heads, tokenizer, documents, rng) for loss in (single_losses, pair_losses, answer_loss)]
        optimizer.zero_grad(set_to_none=True)
        sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        mean += (torch.stack(losses).detach() - mean) * max(0.02, 1 / step)
        if step % 100 == 0:
            print(f"step {step}: losses {mean.tolist()}, {time.perf_counter() - start:.0f} s", flush=True)
    for name, model in vars(heads).items():
        model.eval().to(torch.float16)
        save_head(model, args.mini, name)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
