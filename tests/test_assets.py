"""The embedded checkpoint and its sample corpus: what others rely on, and that the checkpoint knows its languages."""

from pathlib import Path

import pyarrow.dataset as ds
import pytest
import torch

import xlmr_ray
from xlmr_ray import XLMRobertaForSequenceClassification, XLMRobertaTokenizer

ASSETS = Path(xlmr_ray.__file__).parent / "assets"


@pytest.fixture(scope="module")
def model() -> XLMRobertaForSequenceClassification:
    return XLMRobertaForSequenceClassification.from_pretrained(ASSETS / "mini", dtype=torch.float32)


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, object]]:
    files = sorted((ASSETS / "udhr").glob("*.parquet"))
    return ds.dataset(files, format="parquet").to_table().to_pylist()


def test_the_assets_fit_the_wheel():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 12 * 2**20


def test_the_corpus_has_thirty_articles_of_every_declaration(corpus):
    assert len({row["id"] for row in corpus}) == len(corpus)
    by_code: dict[object, list[object]] = {}
    for row in corpus:
        assert row["text"]
        by_code.setdefault(row["code"], []).append(row["article"])
    assert len(by_code) >= 90
    assert all(articles == list(range(1, 31)) for articles in by_code.values())


def test_the_tokenizer_has_the_layout_of_xlm_r(model):
    tokenizer = XLMRobertaTokenizer.from_pretrained(ASSETS / "mini")
    special = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == model.config.vocab_size - 1


def test_the_tokenizer_is_that_which_transformers_loads():
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(ASSETS / "mini")
    tokenizer = XLMRobertaTokenizer.from_pretrained(ASSETS / "mini")
    for text in ("Hello World!", "人人有权享有生命、自由和人身安全。", "ﬁne  №5 <mask>", " Ƙara\n\tsuna "):
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
    assert tokenizer("a", "b")["input_ids"] == reference("a", "b")["input_ids"]


def test_the_checkpoint_names_the_languages_it_was_trained_on(model, corpus):
    tokenizer = XLMRobertaTokenizer.from_pretrained(ASSETS / "mini")
    rows = [row for row in corpus if row["lang"] in model.config.labels and row["article"] in (1, 6, 16, 23, 29)]
    right = 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([tokenizer(row["text"], truncation=True, max_length=512)["input_ids"]])
            right += model.config.labels[int(model(ids).logits.argmax())] == row["lang"]
    assert len({row["lang"] for row in rows}) == len(model.config.labels) - len({"as", "or", "sd"})
    assert right / len(rows) >= 0.95
