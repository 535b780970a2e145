"""`rerank` against sentence-transformers' CrossEncoder."""

import json

import pyarrow as pa
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder

from tests.models import TOKENIZER, add_tokenizer, save_classifier
from tests.tasks.texts import corpus, languages
from xlmr_ray import UserError, pipeline
from xlmr_ray.tasks.rerank import rerank

DOCUMENTS = corpus()
QUERIES = ["Wer ist frei?", "人权", "", "a query that is longer than the window, " * 12, "ما هي الحقوق؟"]
PAIRS = [
    {"text": QUERIES[i % len(QUERIES)], "text_pair": document} for i, document in enumerate([*DOCUMENTS, "", "x " * 9])
]


@pytest.fixture(scope="module")
def folder(make_classifier):
    return make_classifier(num_labels=1)


def reference(folder, **options):
    pairs = [(pair["text"], pair["text_pair"]) for pair in PAIRS]
    return CrossEncoder(str(folder), device="cpu").predict(pairs, **options).tolist()


def test_scores_are_the_references(folder):
    assert len(languages()) > 20
    scores = pipeline("rerank", folder, device="cpu")(PAIRS)
    assert scores == pytest.approx(reference(folder), abs=1e-5)
    logits = pipeline("rerank", folder, device="cpu", function_to_apply="none")(PAIRS)
    assert logits == pytest.approx(reference(folder, activation_fn=torch.nn.Identity()), abs=1e-5)


def test_long_pairs_in_the_layout_of_bge_reranker_v2_m3(tmp_path):
    """8,194 positions, one label, and no word of sentence-transformers in the folder: `predict` and `rank`."""
    folder = save_classifier(tmp_path, num_labels=1, max_position_embeddings=8194)
    add_tokenizer(folder, 8192)
    documents = [" ".join(DOCUMENTS[:40]), *DOCUMENTS[:6], ""]
    model = CrossEncoder(str(folder), device="cpu")
    pipe = pipeline("rerank", folder, device="cpu")
    table = pipe.table([{"text": "Wer ist frei?", "text_pair": document} for document in documents])
    assert 1024 < table["tokens"][0].as_py() < 8192
    predicted = model.predict([("Wer ist frei?", document) for document in documents]).tolist()
    assert table["score"].to_pylist() == pytest.approx(predicted, abs=1e-5)
    theirs = model.rank("Wer ist frei?", documents, return_documents=True)
    ranked = rerank(pipe, "Wer ist frei?", documents, return_documents=True)
    assert [one["index"] for one in ranked] == [one["corpus_id"] for one in theirs]
    assert [one["document"]["text"] for one in ranked] == [one["text"] for one in theirs]
    assert [one["relevance_score"] for one in ranked] == pytest.approx([one["score"] for one in theirs], abs=1e-5)


@pytest.mark.parametrize(
    "said",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
    ids=["identity", "old-sigmoid", "old-identity"],
)
def test_the_function_of_the_configuration(make_classifier, said):
    folder = make_classifier(num_labels=1)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | said), "utf-8")
    assert pipeline("rerank", folder, device="cpu")(PAIRS[:5]) == pytest.approx(reference(folder)[:5], abs=1e-5)


@pytest.mark.parametrize("name", ["Identity", "Sigmoid", "Tanh", "ReLU", "Softplus"])
def test_folders_as_sentence_transformers_saves_them(make_classifier, tmp_path, name):
    """The function and the default prompt stand in `config_sentence_transformers.json`."""
    prompts = {"prompts": {"query": "Frage: "}, "default_prompt_name": "query"} if name == "Tanh" else {}
    model = CrossEncoder(
        str(make_classifier(num_labels=1)), device="cpu", activation_fn=getattr(torch.nn, name)(), **prompts
    )
    model.save_pretrained(str(tmp_path))
    assert "activation_fn" in json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert pipeline("rerank", tmp_path, device="cpu")(PAIRS) == pytest.approx(reference(tmp_path), abs=1e-5)


def test_a_function_that_does_not_map_each_logit_is_refused(make_classifier):
    folder = make_classifier(num_labels=1)
    said = {"activation_fn": "torch.nn.modules.activation.Softmax"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"activation_fn torch\.nn\.modules\.activation\.Softmax is not supported"):
        pipeline("rerank", folder, device="cpu")


def test_the_output_table(folder):
    pipe = pipeline("rerank", folder, device="cpu")
    table = pipe.table([{"text": "q", "text_pair": "d"}, {"text": "q", "text_pair": "many words " * 60}])
    assert table.schema == pa.schema([("score", pa.float32()), ("tokens", pa.int32()), ("truncated", pa.bool_())])
    assert table.schema == pipe.task.schema
    assert table["truncated"].to_pylist() == [False, True]
    assert table["tokens"].to_pylist()[1] == 64
    encoded = pipe.task.prepare(pa.table({"text": ["a query"], "text_pair": ["many words " * 60]}), pipe.tokenizer)
    query = pipe.tokenizer("a query")["input_ids"]
    assert encoded["input_ids"].to_pylist()[0][: len(query)] == query  # the document is cut, the query is not
    assert pipe.table([]).schema == table.schema


def test_the_best_window_of_a_long_document_counts(folder):
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    documents = [" ".join(articles[:4]) for articles in list(languages().values())[:6]] + ["short", ""]
    pipe = pipeline("rerank", folder, device="cpu", long="windows", stride=5, function_to_apply="none")
    table = pipe.table([{"text": "Wer ist frei?", "text_pair": document} for document in documents])
    assert table.schema == pipe.task.schema
    assert table["truncated"].to_pylist() == [False] * 8
    for document, row in zip(documents, table.to_pylist(), strict=True):
        inputs = tokenizer(
            ["Wer ist frei?"], [document], truncation="only_second", stride=5, return_overflowing_tokens=True,
            return_tensors="pt", padding=True,
        )  # fmt: skip
        inputs.pop("overflow_to_sample_mapping")
        with torch.inference_mode():
            logits = model(**inputs).logits[:, 0]
        assert row["windows"] == len(logits)
        assert row["score"] == pytest.approx(logits.max().item(), abs=1e-5)
    assert table["windows"].to_pylist()[:6] > [1] * 6
    assert pipe.table([]).num_rows == 0


def test_documents_by_relevance(folder):
    pipe = pipeline("rerank", folder, device="cpu")
    scores = pipe([{"text": "Wer?", "text_pair": document} for document in DOCUMENTS])
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    ranked = rerank(pipe, "Wer?", DOCUMENTS)
    assert [one["index"] for one in ranked] == order
    assert [one["relevance_score"] for one in ranked] == [scores[place] for place in order]
    best = rerank(pipe, "Wer?", DOCUMENTS, top_n=3, return_documents=True)
    assert best == [{"index": i, "relevance_score": scores[i], "document": {"text": DOCUMENTS[i]}} for i in order[:3]]
    assert rerank(pipe, "Wer?", []) == []
    assert [one["index"] for one in rerank(lambda pairs: [0.5, 0.7, 0.5, 0.7], "q", list("abcd"))] == [1, 3, 0, 2]
    for wrong in ({"top_n": 0}, {"documents": "one text"}, {"documents": [3]}, {"query": None}):
        with pytest.raises(UserError, match="rerank: "):
            rerank(**{"score": pipe, "query": "q", "documents": ["d"], **wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function_to_apply": "softmax"}, "function_to_apply 'softmax' is none of None, sigmoid, none"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
        ({"top_n": 3}, "no option 'top_n'"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("rerank", folder, device="cpu", **options)(PAIRS)


def test_a_checkpoint_of_several_labels(make_classifier):
    with pytest.raises(UserError, match=r"task rerank: .* scores 3 labels, expected one"):
        pipeline("rerank", make_classifier(num_labels=3), device="cpu")
