import asyncio
import base64

import httpx
import numpy as np
import openai
import pytest

from tests.clients.conftest import TEXTS
from tests.serve.server import Running
from xlmr_ray import pipeline


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_vectors_in_its_own_encoding(client: openai.OpenAI, vectors: list[list[float]]) -> None:
    answer = client.embeddings.create(model="mini", input=TEXTS)
    np.testing.assert_allclose([one.embedding for one in answer.data], vectors, atol=1e-6)
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert answer.model == "mini"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_encodings(client: openai.OpenAI, vectors: list[list[float]], encoding: str) -> None:
    answer = client.embeddings.create(model="mini", input=TEXTS[0], encoding_format=encoding)
    given = answer.data[0].embedding
    if encoding == "base64":
        given = np.frombuffer(base64.b64decode(given), "<f4")
    np.testing.assert_allclose(given, vectors[0], atol=1e-6)


def test_async_client(url: str, vectors: list[list[float]]) -> None:
    async def ask() -> list[float]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return (await client.embeddings.create(model="mini", input=TEXTS[1])).data[0].embedding

    np.testing.assert_allclose(asyncio.run(ask()), vectors[1], atol=1e-6)


def test_fewer_dimensions_have_length_1(client: openai.OpenAI, vectors: list[list[float]]) -> None:
    answer = client.embeddings.create(model="mini", input=TEXTS, dimensions=16)
    cut = np.array(vectors)[:, :16]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose([one.embedding for one in answer.data], cut, atol=1e-6)


def test_models(client: openai.OpenAI) -> None:
    assert "mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("mini").owned_by == "xlmr-ray"
    with pytest.raises(openai.NotFoundError, match="there are: mini"):
        client.models.retrieve("gpt-9")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="gpt-9", input="a")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        client.embeddings.create(model="mini", input="a", dimensions=129)
    assert wrong.value.param == "dimensions"
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="mini", input=["a", ""])
    assert empty.value.param == "input.1"
    with pytest.raises(openai.APIStatusError) as long:
        client.embeddings.create(model="mini", input=["a", "word " * 600])
    assert long.value.status_code == 413
    assert long.value.param == "input.1"
    assert "512 tokens that the model takes; with truncate: true it is cut" in long.value.message


def test_long_texts_are_cut_where_asked(client: openai.OpenAI, server: Running) -> None:
    def of(text: str, **more: object) -> list[float]:
        return client.embeddings.create(model="mini", input=text, extra_body=more).data[0].embedding

    long = "word " * 600
    embed = pipeline("embedding", "embedded:mini", normalize=True)
    for more in ({"truncate": True}, {"truncate_prompt_tokens": -1}):
        np.testing.assert_allclose(of(long, **more), embed([long])[0], atol=1e-6)
    short = pipeline("embedding", "embedded:mini", normalize=True, max_length=7)
    np.testing.assert_allclose(of(TEXTS[0], truncate_prompt_tokens=7), short(TEXTS[:1])[0], atol=1e-6)
    for wrong in (0, 513):
        with pytest.raises(openai.UnprocessableEntityError, match="truncate_prompt_tokens"):
            of(long, truncate_prompt_tokens=wrong)


def test_ids_of_another_tokenizer_are_refused(client: openai.OpenAI, vectors: list[list[float]], url: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="mini", input=[[9906, 1917]])
    tokens = httpx.post(f"{url}/tokenize", json={"inputs": TEXTS}).json()
    ids = [[token["id"] for token in row] for row in tokens]
    answer = client.embeddings.create(model="mini", input=ids, extra_body={"token_ids": True})
    np.testing.assert_allclose([one.embedding for one in answer.data], vectors, atol=1e-6)
    with pytest.raises(openai.UnprocessableEntityError, match="not among"):
        client.embeddings.create(model="mini", input=[[20000]], extra_body={"token_ids": True})
