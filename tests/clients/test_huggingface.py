"""`huggingface_hub.InferenceClient`: every task that it has of those that the service has."""

import asyncio
from typing import Any

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError

from tests.clients.conftest import TEXTS
from tests.serve.server import Running
from xlmr_ray import pipeline

QUESTION, CONTEXT = "What shall be free?", "Everyone has the right to education. Education shall be free."
MASKED = "Everyone has the <mask> to life."


@pytest.fixture
def client(url: str) -> Any:
    return lambda task: InferenceClient(base_url=f"{url}/tasks/{task}")


def test_feature_extraction(client: Any, url: str, vectors: list[list[float]]) -> None:
    ask = client("feature-extraction").feature_extraction
    np.testing.assert_allclose(ask(TEXTS, normalize=True), vectors, atol=1e-6)
    given = ask(TEXTS[0], normalize=True, truncate=True, truncation_direction="right", dimensions=8)
    cut = np.array(vectors[:1])[:, :8]
    np.testing.assert_allclose(given, cut / np.linalg.norm(cut), atol=1e-6)
    np.testing.assert_allclose(ask(TEXTS), [one.tolist() for one in pipeline("embedding")(TEXTS)], atol=1e-6)
    # The URL alone, as for text-embeddings-inference.
    np.testing.assert_allclose(InferenceClient(base_url=url).feature_extraction(TEXTS), vectors, atol=1e-6)
    with pytest.raises(HfHubHTTPError, match=r"Available prompts: \[\]"):
        ask(TEXTS, prompt_name="query")


def test_text_classification(client: Any, server: Running) -> None:
    ask = client("text-classification").text_classification
    wanted = pipeline("text-classification", "embedded:mini", top_k=None)(TEXTS[0])[0]
    assert [(one.label, pytest.approx(one.score)) for one in ask(TEXTS[0])] == [tuple(one.values()) for one in wanted]
    (best,) = ask(TEXTS[0], top_k=1, function_to_apply="none")
    (wanted,) = pipeline("text-classification", "embedded:mini", function_to_apply="none")(TEXTS[0])
    assert (best.label, best.score) == (wanted["label"], pytest.approx(wanted["score"]))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(client: Any, server: Running, strategy: str) -> None:
    text = "Свобода means freedom"
    wanted = pipeline("token-classification", server.source("entities"), aggregation_strategy=strategy)(text)
    entities = client("token-classification").token_classification(text, aggregation_strategy=strategy)
    assert len(entities) == len(wanted) > 0
    for got, entity in zip(entities, wanted, strict=True):
        assert (got.word, got.start, got.end) == (entity["word"], entity["start"], entity["end"])
        assert (got.entity or got.entity_group) == (entity.get("entity") or entity["entity_group"])
        assert got.score == pytest.approx(entity["score"])
    ignored = client("token-classification").token_classification(
        text, ignore_labels=["O", "Latin", "Cyrillic"], stride=8
    )
    assert ignored == []


def test_fill_mask(client: Any, server: Running) -> None:
    wanted = pipeline("fill-mask", server.source("masked"), top_k=2)(MASKED)
    fills = client("fill-mask").fill_mask(MASKED, top_k=2)
    assert [(one.token, one.token_str, one.sequence) for one in fills] == [
        (one["token"], one["token_str"], one["sequence"]) for one in wanted
    ]
    (only,) = client("fill-mask").fill_mask(MASKED, targets=["e"], top_k=5)
    assert only.token_str == "e"
    with pytest.raises(HfHubHTTPError, match="<mask>"):
        client("fill-mask").fill_mask("no mask")


def test_question_answering(client: Any, server: Running) -> None:
    ask = client("question-answering").question_answering
    wanted = pipeline("question-answering", server.source("answers"))({"question": QUESTION, "context": CONTEXT})
    got = ask(QUESTION, CONTEXT)
    assert (got.answer, got.start, got.end) == (wanted["answer"], wanted["start"], wanted["end"])
    assert got.score == pytest.approx(wanted["score"])
    several = ask(
        question=QUESTION,
        context=CONTEXT,
        align_to_words=False,
        doc_stride=8,
        handle_impossible_answer=True,
        max_answer_len=4,
        max_question_len=16,
        max_seq_len=64,
        top_k=3,
    )
    assert len(several) == 3
    assert all(CONTEXT[one.start : one.end] == one.answer for one in several)


def test_zero_shot_classification(client: Any, server: Running) -> None:
    labels, template = ["school", "war"], "This text is about {}."
    given = {"candidate_labels": labels, "multi_label": True, "hypothesis_template": template}
    wanted = pipeline("zero-shot-classification", server.source("entailment"), **given)(CONTEXT)
    got = client("zero-shot-classification").zero_shot_classification(CONTEXT, **given)
    assert [one.label for one in got] == wanted["labels"]
    assert [one.score for one in got] == pytest.approx(wanted["scores"])


def test_sentence_similarity(client: Any) -> None:
    wanted = pipeline("sentence-similarity")([{"text": TEXTS[0], "text_pair": other} for other in TEXTS[1:]])
    got = client("sentence-similarity").sentence_similarity(TEXTS[0], TEXTS[1:])
    assert got == pytest.approx(wanted)


def test_text_generation(client: Any, server: Running) -> None:
    ask = client("text-generation").text_generation
    causal = pipeline("text-generation", server.source("causal"), max_new_tokens=5)
    assert ask("Everyone", max_new_tokens=5, seed=1) == causal("Everyone", seed=1)[0]["generated_text"]
    wanted = causal("Everyone", do_sample=False, return_full_text=False, repetition_penalty=1.5, stop_sequence=["a"])
    given = {"do_sample": False, "return_full_text": False, "repetition_penalty": 1.5, "stop": ["a"]}
    assert ask("Everyone", max_new_tokens=5, **given) == wanted[0]["generated_text"]
    for option in ({"watermark": True}, {"best_of": 2}, {"typical_p": 0.5}, {"truncate": 4}, {"details": True}):
        with pytest.raises(TextGenerationError, match=next(iter(option))):
            ask("Everyone", max_new_tokens=5, **option)


def test_async_client(url: str, vectors: list[list[float]]) -> None:
    async def ask() -> Any:
        client = AsyncInferenceClient(base_url=f"{url}/tasks/feature-extraction")
        return await client.feature_extraction(TEXTS, normalize=True)

    np.testing.assert_allclose(asyncio.run(ask()), vectors, atol=1e-6)


def test_health_and_info(url: str) -> None:
    client = InferenceClient(model=url, provider="hf-inference")
    assert client.health_check()
    assert client.get_endpoint_info()["model_id"] == "mini"
    of_task = InferenceClient(model=f"{url}/tasks/fill-mask", provider="hf-inference")
    assert of_task.get_endpoint_info()["model_id"] == "masked"
