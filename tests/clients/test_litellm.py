"""LiteLLM's providers for servers like this one, each at the URL that its users give."""

from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS

litellm = pytest.importorskip("litellm", reason="litellm is of the extra `clients`")

EMBEDDERS = [
    ("openai", "/v1"),
    ("hosted_vllm", "/v1"),
    ("jina_ai", "/v1"),
    ("infinity", ""),
    ("cohere", "/v1/embed"),
    ("cohere", "/v2/embed"),
]


@pytest.mark.parametrize(("provider", "path"), EMBEDDERS)
def test_embeddings(url: str, vectors: list[list[float]], provider: str, path: str) -> None:
    answer = litellm.embedding(f"{provider}/mini", input=TEXTS, api_base=url + path, api_key="none")
    np.testing.assert_allclose([one["embedding"] for one in answer.data], vectors, atol=1e-6)


@pytest.mark.parametrize(("path", "task"), [("", "embed"), ("/tasks/feature-extraction", "feature-extraction")])
def test_embeddings_of_hugging_face(url: str, vectors: list[list[float]], path: str, task: str) -> None:
    answer = litellm.embedding("huggingface/mini", input=TEXTS, api_base=url + path, api_key="none", input_type=task)
    for one, vector in zip(answer.data, vectors, strict=True):
        given = np.array(one["embedding"])
        np.testing.assert_allclose(given / np.linalg.norm(given), vector, atol=1e-6)


def test_fewer_dimensions_by_infinitys_name(url: str) -> None:
    answer = litellm.embedding("infinity/mini", input=TEXTS, api_base=url, api_key="none", dimensions=8)
    assert {len(one["embedding"]) for one in answer.data} == {8}


@pytest.mark.parametrize(
    ("provider", "path"),
    [("hosted_vllm", "/v1"), ("jina_ai", "/v1"), ("cohere", ""), ("infinity", ""), ("huggingface", "")],
)
def test_rerank(url: str, relevance: list[float], provider: str, path: str) -> None:
    def ask(**more: Any) -> Any:
        model = f"{provider}/relevance"
        return litellm.rerank(model, QUERY, DOCUMENTS, api_base=url + path, api_key="none", **more).results

    order = sorted(range(3), key=lambda place: -relevance[place])[:2]
    results = ask(top_n=2)
    assert [one["index"] for one in results] == order
    assert [one["relevance_score"] for one in results] == pytest.approx([relevance[place] for place in order])
    # Documents come back as LiteLLM tells of them, whatever the provider's own form.
    if provider != "cohere":
        assert [one["document"]["text"] for one in ask(top_n=2, return_documents=True)] == [DOCUMENTS[i] for i in order]
