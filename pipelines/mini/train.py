"""Trains embedded:mini: a small XLM-R classifier that names the language of a document.

    python pipelines/mini/train.py WORK/text.parquet xlmr_ray/assets/mini [--steps N] [--leave-out SOURCE,SOURCE]

OUT holds the tokenizer (make_tokenizer.py); the configuration and fp16 weights are written beside it. With
`--leave-out`, these sources are not trained on and the accuracy on them is printed: a stand-in for text of another
kind, by which sizes and augmentation are chosen. The declaration of human rights is not read here.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from documents import Documents
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray import XLMRobertaConfig, XLMRobertaForSequenceClassification

TOKENS = 4096  # a batch
POOL = 1024  # documents that are cut into batches of like lengths together
MAX_LENGTH = 512
COUNTED = 200_000  # characters of each language whose pieces are counted before training
MASKED = 0.12  # of the tokens are replaced, so that no document hangs on one word
PAD, UNK = 1, 3


def collate(rows: list[list[int]], labels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, (ids != PAD).long(), torch.tensor(labels)


def batches(documents: Documents, tokenizer: Tokenizer, rng: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of documents of about one length, at most TOKENS with the padding."""
    languages = documents.languages
    while True:
        labels = [i % len(languages) for i in range(POOL)]
        texts = [documents.draw(languages[label], rng) for label in labels]
        rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        order = sorted(range(POOL), key=lambda i: len(rows[i]) + rng.random() * 4)
        found: list[list[int]] = [[]]
        for i in order:
            if found[-1] and (len(found[-1]) + 1) * len(rows[i]) > TOKENS:
                found.append([])
            found[-1].append(i)
        rng.shuffle(found)
        for batch in found:
            yield collate([rows[i] for i in batch], [labels[i] for i in batch])


def evidence(documents: Documents, tokenizer: Tokenizer, width: int) -> Tensor:
    """Token embeddings to start from, `(vocabulary, width)`: how much a piece speaks for each language.

    Naive Bayes: log P(language | piece) with equal priors, less its mean over the languages, from COUNTED characters of
    each. One more number is the same for all, so that the layer norm after the embeddings keeps faint evidence faint;
    the rest are noise for training to use.
    """
    counts = torch.zeros(tokenizer.get_vocab_size(), len(documents.languages))
    for column, lang in enumerate(documents.languages):
        ids = [i for encoding in tokenizer.encode_batch_fast(documents.sample(lang, COUNTED)) for i in encoding.ids]
        counts[:, column] = torch.bincount(torch.tensor(ids), minlength=len(counts))
    frequency = counts / counts.sum(0)
    odds = (frequency + 1e-6).log()
    odds -= odds.mean(1, keepdim=True)
    table = torch.randn(len(counts), width) * 0.02
    table[:, : odds.shape[1]] += 0.1 * odds
    table[:, odds.shape[1]] = 2.0
    table[: UNK + 1] = torch.randn(UNK + 1, width) * 0.02
    table[PAD] = 0.0
    return table


def corrupt(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Some tokens (none of the special ones) become <unk>."""
    hit = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids > UNK)
    return ids.masked_fill(hit, UNK)


@torch.inference_mode()
def accuracy(
    model: XLMRobertaForSequenceClassification, tokenizer: Tokenizer, documents: Documents, count: int
) -> float:
    model.eval()
    rng = random.Random(5)
    label2id = model.config.label2id or {}
    right = total = 0
    pairs = [(documents.draw(lang, rng), label2id[lang]) for lang in documents.languages for _ in range(count)]
    pairs.sort(key=lambda pair: len(pair[0]))
    for start in range(0, len(pairs), 64):
        texts, labels = zip(*pairs[start : start + 64], strict=True)
        ids, mask, wanted = collate([encoding.ids for encoding in tokenizer.encode_batch_fast(texts)], list(labels))
        right += int((model(ids, attention_mask=mask).logits.argmax(-1) == wanted).sum())
        total += len(texts)
    model.train()
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--leave-out", default="")
    args = parser.parse_args()
    torch.manual_seed(7)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # Adam's averages of rows seldom seen fade into denormals, which are slow
    generator = torch.Generator().manual_seed(7)

    left_out = {source for source in args.leave_out.split(",") if source}
    documents = Documents(args.text, held_out=False, leave_out=left_out)
    held_out = Documents(args.text, held_out=True, leave_out=left_out)
    elsewhere = Documents(args.text, held_out=False, leave_out=set(), only=left_out) if left_out else None
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    languages = documents.languages
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.09,  # about 1 / sqrt(hidden), as 0.02 is for large models
        id2label=dict(enumerate(languages)),
        problem_type="single_label_classification",
    )
    start = time.perf_counter()
    model = XLMRobertaForSequenceClassification(config).train()
    with torch.no_grad():
        embeddings: Any = model.get_submodule("roberta.embeddings")
        embeddings.word_embeddings.weight.copy_(evidence(documents, tokenizer, config.hidden_size))
        embeddings.position_embeddings.weight.mul_(0.1)
        embeddings.token_type_embeddings.weight.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warm_up = args.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (args.steps - step) / (args.steps - warm_up))
    )
    print(f"{len(languages)} languages, {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    print(f"pieces counted: {time.perf_counter() - start:.0f} s", flush=True)

    mean = 0.0
    for step, (ids, mask, labels) in enumerate(batches(documents, tokenizer, random.Random(7)), 1):
        logits = model(corrupt(ids, generator), attention_mask=mask).logits
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) * max(0.02, 1 / step)
        if step % 50 == 0:
            print(f"step {step}: loss {mean:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        if step == args.steps or step % 500 == 0:
            report = f"held out {accuracy(model, tokenizer, held_out, 10):.4f}"
            if elsewhere:
                report += f", left out {accuracy(model, tokenizer, elsewhere, 20):.4f}"
            print(f"step {step}: {report}", flush=True)
        if step == args.steps:
            break
    model.eval().to(torch.float16).save_pretrained(args.out)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
