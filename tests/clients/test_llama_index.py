import asyncio

import numpy as np
import pytest

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS

reason = "LlamaIndex's integrations are of the extra `clients`"
embeddings = pytest.importorskip("llama_index.embeddings.text_embeddings_inference", reason=reason)
rerankers = pytest.importorskip("llama_index.postprocessor.tei_rerank", reason=reason)


def test_embeddings(url: str, vectors: list[list[float]]) -> None:
    # A name that it knows no instructions for, so that texts go as they are.
    model = embeddings.TextEmbeddingsInference(
        model_name="mini", base_url=url, text_instruction="", query_instruction=""
    )
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(model.get_query_embedding(TEXTS[1]), vectors[1], atol=1e-6)
    np.testing.assert_allclose(asyncio.run(model.aget_text_embedding(TEXTS[2])), vectors[2], atol=1e-6)


def test_rerank(url: str, relevance: list[float]) -> None:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    ranked = rerankers.TextEmbeddingInference(base_url=url, top_n=2).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.score for node in ranked] == pytest.approx(sorted(relevance, reverse=True)[:2])
