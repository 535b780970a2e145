"""Trains embedded:help: an encoder whose vectors of a text and of its translation are near each other.

    python pipelines/mini/train_help.py WORK/help.parquet xlmr_ray/assets/help [--steps N]

OUT holds the tokenizer (make_tokenizer.py); the configuration, fp16 weights and sentence-transformers' modules are
written beside it. Token embeddings start from the pages that a piece stands on, a page in 29 languages being one: so
pieces that mean alike in two languages are near before a step is made. A step is PAIRS paragraphs, each with its
translation into another language, which is to be the nearest of all in the batch (InfoNCE, van den Oord et al. 2018,
https://arxiv.org/abs/1807.03748); beside that, the first token's state is to know the page's program.
"""

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse
import torch
from make_help import PROGRAMS
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray import XLMRobertaConfig, XLMRobertaModel
from xlmr_ray.model.heads import ClassificationHead
from xlmr_ray.train.output import save_sentence_modules

PAIRS = 192
LENGTH = 96  # tokens
PARTS = 4  # of a batch, by length: less padding
TEMPERATURE = 0.05
LOST = 0.1  # of the tokens become <unk>, so that no paragraph hangs on one word
NOISE = 8  # numbers of a token's embedding that start with no meaning
PAD, UNK = 1, 3
TOPICS = sorted(set(PROGRAMS.values()) - {"common"})


def meanings(tokenizer: Tokenizer, texts: list[str], pages: list[str], width: int) -> Tensor:
    """Token embeddings to start from, `(vocabulary, width)`: latent semantic analysis of pieces by pages, with positive
    pointwise mutual information (Levy and Goldberg 2014).
    """
    numbers = {page: number for number, page in enumerate(sorted(set(pages)))}
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    pieces = np.concatenate([encoding.ids for encoding in encodings])
    columns = np.repeat([numbers[page] for page in pages], [len(encoding.ids) for encoding in encodings])
    shape = (tokenizer.get_vocab_size(), len(numbers))
    counts = scipy.sparse.csr_matrix((np.ones(len(pieces), np.float32), (pieces, columns)), shape).tocoo()
    counts.sum_duplicates()
    of_piece, of_page = (np.asarray(counts.sum(axis)).ravel() for axis in (1, 0))
    information = np.log(counts.data * counts.sum() / (of_piece[counts.row] * of_page[counts.col]))
    kept = np.maximum(information, 0) * np.minimum(1, counts.data / 3)  # what was seen once or twice is little sign
    left, values, _ = svds(
        scipy.sparse.csr_matrix((kept, (counts.row, counts.col)), shape), width - NOISE, random_state=7
    )
    vectors = left * np.sqrt(values)
    vectors /= np.sqrt((vectors**2).sum(1).mean())
    table = torch.randn(len(vectors), width) * 0.05
    table[:, :-NOISE] += torch.from_numpy(np.ascontiguousarray(vectors)).float()
    table[:, -NOISE] += 1.0  # the same for all, so that the norm keeps small vectors small
    special = [*range(UNK + 1), len(vectors) - 1]
    table[special] = torch.randn(len(special), width) * 0.05
    table[PAD] = 0.0
    return table


class Paragraphs:
    """Draws paragraphs with a translation of each, every language as often as every other."""

    def __init__(self, table: dict[str, list[Any]]) -> None:
        self.versions: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        self.programs: dict[tuple[str, str], str] = {}
        self.of_language: dict[str, list[tuple[tuple[str, str], str]]] = defaultdict(list)
        columns = (table[name] for name in ("lang", "page", "program", "id", "text"))
        for lang, page, program, place, text in zip(*columns, strict=True):
            self.versions[page, place].append((lang, text))
            self.programs[page, place] = program
            self.of_language[lang].append(((page, place), text))
        self.languages = sorted(self.of_language)

    def draw(self, count: int, rng: random.Random) -> tuple[list[str], list[str], list[int]]:
        """Texts, their translations, and the topic of each, -100 where it has none."""
        drawn: dict[tuple[str, str], tuple[str, str]] = {}
        while len(drawn) < count:
            lang = rng.choice(self.languages)
            key, text = rng.choice(self.of_language[lang])
            others = [other for spoken, other in self.versions[key] if spoken != lang]
            if others and key not in drawn:
                drawn[key] = text, rng.choice(others)
        programs = [self.programs[key] for key in drawn]
        firsts, seconds = zip(*drawn.values(), strict=True)
        return list(firsts), list(seconds), [TOPICS.index(one) if one in TOPICS else -100 for one in programs]


def encoded(
    encoder: XLMRobertaModel, tokenizer: Tokenizer, texts: list[str], lost: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The mean of each text's hidden states, and the state of its first token: `(N, hidden)` both."""
    encodings = tokenizer.encode_batch_fast(texts)
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
    means, firsts = [], []
    for part in np.array_split(np.array(order), PARTS):
        rows = [encodings[i].ids for i in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        mask = (ids != PAD).long()
        if lost is not None:
            ids = ids.masked_fill((torch.rand(ids.shape, generator=lost) < LOST) & (ids > UNK), UNK)
        hidden = encoder(ids, mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        means.append((hidden * weights).sum(1) / weights.sum(1))
        firsts.append(hidden[:, 0])
    back = torch.tensor(order).argsort()
    return torch.cat(means)[back], torch.cat(firsts)[back]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("help", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(7)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # Adam's averages of rows seldom seen fade into denormals, which are slow
    rng, lost = random.Random(7), torch.Generator().manual_seed(7)
    start = time.perf_counter()

    table = pq.read_table(args.help, filters=~pc.field("held_out")).to_pydict()
    paragraphs = Paragraphs(table)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.09,  # about 1 / sqrt(hidden), as 0.02 is for large models
        id2label=dict(enumerate(TOPICS)),
    )
    # Never in training mode: without dropout, since it learns too little as it is.
    encoder, topic = XLMRobertaModel(config, add_pooling_layer=False).eval(), ClassificationHead(config).eval()
    with torch.no_grad():
        words = encoder.get_input_embeddings().weight
        words.copy_(meanings(tokenizer, table["text"], table["page"], config.hidden_size))
        encoder.embeddings.position_embeddings.weight.mul_(0.3)
        encoder.embeddings.token_type_embeddings.weight.zero_()
    tokenizer.enable_truncation(LENGTH)
    weights = [*encoder.parameters(), *topic.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warm_up = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (args.steps - step) / (args.steps - warm_up))
    )
    print(
        f"{len(paragraphs.languages)} languages, {sum(p.numel() for p in encoder.parameters()) / 1e6:.2f}M parameters"
    )

    mean = torch.zeros(2)
    for step in range(1, args.steps + 1):
        texts, translations, topics = paragraphs.draw(PAIRS, rng)
        means, firsts = encoded(encoder, tokenizer, texts + translations, lost)
        vectors = F.normalize(means, dim=-1)
        scores = vectors[:PAIRS] @ vectors[PAIRS:].T / TEMPERATURE
        places = torch.arange(PAIRS)
        near = (F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)) / 2
        program = F.cross_entropy(topic(firsts), torch.tensor(topics * 2), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        (near + 0.5 * program).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        mean += (torch.stack([near, program]).detach() - mean) * max(0.05, 1 / step)
        if step % 50 == 0:
            print(f"step {step}: losses {mean.tolist()}, {time.perf_counter() - start:.0f} s", flush=True)

    config = XLMRobertaConfig.from_dict({k: v for k, v in config.to_dict().items() if "label" not in k})
    encoder.config = config
    encoder.to(torch.float16).save_pretrained(args.out)
    if not (args.out / "modules.json").exists():
        save_sentence_modules(args.out, args.out)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
