"""The embedded checkpoints and the sample corpus: what others rely on, and that checkpoints know what they should."""

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch

import xlmr_ray
from xlmr_ray import XLMRobertaForSequenceClassification, XLMRobertaTokenizer, pipeline

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


# Of no help page: written for this test.
SENTENCES = {
    "en": [
        "Select the cells whose values you want to add up in the spreadsheet.",
        "Draw a rectangle and change the colour of its border.",
        "Connect to a database and create a query with two tables.",
        "Insert a page break before the next paragraph of the text.",
        "Start the presentation with the first slide.",
        "The macro stops with an error if the variable is not declared.",
    ],
    "de": [
        "Markieren Sie die Zellen, deren Werte Sie in der Tabelle addieren möchten.",
        "Zeichnen Sie ein Rechteck und ändern Sie die Farbe seiner Umrandung.",
        "Verbinden Sie sich mit einer Datenbank und erstellen Sie eine Abfrage mit zwei Tabellen.",
        "Fügen Sie vor dem nächsten Absatz des Textes einen Seitenumbruch ein.",
        "Starten Sie die Präsentation mit der ersten Folie.",
        "Das Makro bricht mit einem Fehler ab, wenn die Variable nicht deklariert ist.",
    ],
    "ru": [
        "Выделите ячейки, значения которых нужно сложить в электронной таблице.",
        "Нарисуйте прямоугольник и измените цвет его границы.",
        "Подключитесь к базе данных и создайте запрос с двумя таблицами.",
        "Вставьте разрыв страницы перед следующим абзацем текста.",
        "Запустите презентацию с первого слайда.",
        "Макрос завершается с ошибкой, если переменная не объявлена.",
    ],
    "ja": [
        "表計算ドキュメントで値を合計したいセルを選択します。",
        "四角形を描き、枠線の色を変更します。",
        "データベースに接続し、2 つのテーブルを使うクエリーを作成します。",
        "次の段落の前に改ページを挿入します。",
        "最初のスライドからプレゼンテーションを開始します。",
        "変数が宣言されていない場合、マクロはエラーで停止します。",
    ],
}
PROGRAMS = ["Calc", "Draw", "Base", "Writer", "Impress", "Basic"]


def test_help_finds_translations():
    embed = pipeline("embedding", "embedded:help")
    vectors = {lang: np.array(embed(texts)) for lang, texts in SENTENCES.items()}
    right = [
        (vectors[one] @ vectors[other].T).argmax(1) == np.arange(6)
        for one in vectors
        for other in vectors
        if one != other
    ]
    assert np.mean(right) >= 0.8  # one in six by chance


def test_help_knows_the_program():
    answers = pipeline("text-classification", "embedded:help/heads/topic")(
        [t for own in SENTENCES.values() for t in own]
    )
    right = [answer["label"] == name for answer, name in zip(answers, PROGRAMS * len(SENTENCES), strict=True)]
    assert np.mean(right) >= 0.7


def test_help_is_what_sentence_transformers_loads():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = SENTENCES["en"] + SENTENCES["ja"]
    model = sentence_transformers.SentenceTransformer(
        str(ASSETS / "help"), device="cpu", model_kwargs={"torch_dtype": torch.float32}
    )
    ours = np.array(pipeline("embedding", "embedded:help", dtype="float32")(texts))
    np.testing.assert_allclose(ours, model.encode(texts), atol=1e-5)
