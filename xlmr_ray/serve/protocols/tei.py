"""The routes of text-embeddings-inference, and `POST /` for the first task of the service."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Discriminator, Tag

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.models import Model as Resident
from xlmr_ray.serve.protocols.body import Model
from xlmr_ray.serve.protocols.cohere import Reranking, reranked
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import embedded, given_texts, prompt, similar
from xlmr_ray.serve.protocols.info import Info, info
from xlmr_ray.serve.protocols.reply import ask, check_count, check_ids, cut_indices, headers, json_response, reply
from xlmr_ray.serve.protocols.responses import Label, PlainError, Rank, Rerankings, SparseValue, Token
from xlmr_ray.serve.protocols.tei_bodies import (
    Decode,
    Embed,
    EmbedAll,
    Predict,
    RerankBody,
    Similarity,
    SimilarityParameters,
    TokenizeBody,
)
from xlmr_ray.serve.requests import ErrorBody, Invalid, ServiceError, TooLarge
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.validation import listed

# That `/tokenize` lists: each takes a hundred times its text.
MOST_LISTED = 65_536
# One word for each status, where it has one there.
WORDS = {
    400: "Empty",
    401: "Unauthorized",
    404: "NotFound",
    408: "Timeout",
    413: "Validation",
    422: "Validation",
    424: "Backend",
    429: "Overloaded",
    503: "Unhealthy",
}


def either(body: Any) -> str:
    """Whose rerank body it is: `documents` are Cohere's and Jina's, `texts` text-embeddings-inference's."""
    return "Cohere" if isinstance(body, dict | Reranking) and "documents" in dict(body) else "TEI"


AnyRerank = Annotated[
    Annotated[RerankBody, Tag("TEI")] | Annotated[Reranking, Tag("Cohere")],
    Discriminator(either),
]


def error_body(error: ServiceError) -> Mapping[str, Any]:
    return {"error": str(error), "error_type": WORDS.get(error.status, error.kind)}


def errors(path: str) -> ErrorBody | None:
    """The error body for a path: these routes are asked last, and take all that nobody else has."""
    return error_body


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["text-embeddings-inference"])

    @routes.post("/embed", **documented("POST /embed", list[list[float]], PlainError, summary="A vector a text"))
    async def embed(body: Embed, model: Model = None) -> Response:
        return await tei_vectors(service, body, body.which(model))

    @routes.post(
        "/embed_all",
        **documented("POST /embed_all", list[list[list[float]]], PlainError, summary="A vector a token of each text"),
    )
    async def embed_all(body: EmbedAll, model: Model = None) -> Response:
        options = {"pooling": None, "layers": [-1], "return_tensors": True}
        answer = await with_prompt(service, "feature-extraction", body, options, body.which(model))
        return reply([states[0].numpy() for states in answer.answers], answer)

    @routes.post(
        "/embed_sparse",
        **documented(
            "POST /embed_sparse", list[list[SparseValue]], PlainError, summary="Weights of the tokens of each text"
        ),
    )
    async def embed_sparse(body: EmbedAll, model: Model = None) -> Response:
        answer = await with_prompt(service, "sparse", body, {"pieces": False}, body.which(model))
        weights = [[{"index": one, "value": value} for one, value in text.items()] for text in answer.answers]
        return reply(weights, answer)

    @routes.post(
        "/predict",
        **documented("POST /predict", list[Label] | list[list[Label]], PlainError, summary="Scores of all labels"),
    )
    async def predict(body: Predict, model: Model = None) -> Response:
        return await tei_labels(service, body, body.which(model))

    @routes.post(
        "/rerank",
        **documented(
            "POST /rerank", list[Rank] | Rerankings, PlainError, summary="Texts by how well they answer a query"
        ),
    )
    async def rerank(body: AnyRerank, model: Model = None) -> Response:
        if isinstance(body, Reranking):
            return await reranked(service, body, body.which(model), plain=True)
        return await ranks(service, body, body.which(model))

    @routes.post(
        "/similarity",
        **documented("POST /similarity", list[float], PlainError, summary="How near sentences are to another"),
    )
    async def similarity(body: Similarity, model: Model = None) -> Response:
        return await nearness(service, body, body.which(model))

    @routes.post("/tokenize", **documented("POST /tokenize", list[list[Token]], PlainError, summary="Tokens of texts"))
    async def tokenize(body: TokenizeBody, model: Model = None) -> Response:
        resident = resident_model(service, body.which(model))
        before = prompt(service, resident, body.prompt_name, "prompt_name")
        texts = [before + text for text in listed(body.inputs)]
        check_count(service, texts, "inputs")
        special = body.add_special_tokens is not False
        most = min(MOST_LISTED, service.limits.request_tokens)
        return await in_thread(service.apart, lambda: reply(tokens(resident, texts, special, most)))

    @routes.post("/decode", **documented("POST /decode", list[str], PlainError, summary="Texts of tokens"))
    async def decode(body: Decode, model: Model = None) -> Response:
        resident = resident_model(service, body.which(model))
        ids = [one for one in body.ids if isinstance(one, int)]
        rows = [ids] if ids else [one for one in body.ids if isinstance(one, list)]
        check_count(service, rows, "ids")
        check_ids(service, rows, "ids")
        skip = body.skip_special_tokens is not False
        return await in_thread(service.apart, lambda: reply(decoded(resident, rows, skip)))

    @routes.get("/info", **documented("GET /info", Info, PlainError, summary="The models, their tasks and limits"))
    async def about(model: Model = None) -> Info:
        resident = resident_model(service, model)
        return info(service, service.find(resident.tasks[0], resident.name))

    return routes


async def tei_vectors(service: Service, body: Embed, model: str | None) -> Response:
    served = service.find("embedding", model)
    texts, single = await given_texts(service, body.inputs, served.model, "inputs")
    options = {"normalize": body.normalize, "prompt_name": body.prompt_name, "dimensions": body.dimensions}
    request = TaskRequest(
        "embedding",
        {"text": texts},
        options,
        model=served.model.name,
        fields={"text": "inputs"},
        once=("inputs",) if single else (),
        cutting=body.cutting,
    )
    answer = await embedded(service, request)
    return reply(answer.answers, answer)


async def with_prompt(
    service: Service, task: str, body: EmbedAll, options: Mapping[str, Any], model: str | None
) -> Answer:
    """The answer of a task that has no prompts: they are put before its texts."""
    served = service.find(task, model)
    texts, single = await given_texts(service, body.inputs, served.model, "inputs")
    before = prompt(service, served.model, body.prompt_name, "prompt_name")
    request = TaskRequest(
        task,
        {"text": [before + text for text in texts]},
        options,
        model=served.model.name,
        fields={"text": "inputs"},
        once=("inputs",) if single else (),
        cutting=body.cutting,
    )
    return await ask(service, request)


async def tei_labels(service: Service, body: Predict, model: str | None) -> Response:
    """Texts and pairs of them may be mixed: each kind is asked for by itself."""
    given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    several = not isinstance(body.inputs, str) and any(isinstance(one, list) for one in given)
    if several:
        rows = [one for one in given if isinstance(one, list)]
    else:
        rows = [[one for one in given if isinstance(one, str)]]
    check_count(service, rows if given else [], "inputs")
    options: dict[str, Any] = {"top_k": None} | ({"function_to_apply": "none"} if body.raw_scores else {})
    out: list[Any] = [None] * len(rows)
    answers: list[Answer] = []
    cut: list[int] = []
    for size in sorted({len(row) for row in rows}):
        indices = [index for index, row in enumerate(rows) if len(row) == size]
        roles = ("text", "text_pair")[:size]
        request = TaskRequest(
            "text-classification",
            {role: [rows[index][column] for index in indices] for column, role in enumerate(roles)},
            options,
            model=model,
            fields={"text": "inputs", "text_pair": "inputs", "function_to_apply": "raw_scores"},
            once=() if several else ("inputs",),
            cutting=body.cutting,
        )
        answer = await ask(service, request)
        answers.append(answer)
        cut += [indices[one] for one in cut_indices(answer)]
        for index, scores in zip(indices, answer.answers, strict=True):
            out[index] = scores
    return json_response(out if several else out[0], headers(answers, cut))


async def ranks(service: Service, body: RerankBody, model: str | None) -> Response:
    check_count(service, body.texts, "texts")
    request = TaskRequest(
        "rerank",
        {"text": [body.query] * len(body.texts), "text_pair": body.texts},
        {"function_to_apply": "none"} if body.raw_scores else {},
        model=model,
        fields={"text": "query", "text_pair": "texts", "function_to_apply": "raw_scores"},
        once=("query",),
        cutting=body.cutting,
    )
    answer = await ask(service, request)
    best = sorted(range(len(body.texts)), key=lambda index: -answer.answers[index])[: body.top_n]
    return reply(
        [
            {"index": index, "score": answer.answers[index]} | ({"text": body.texts[index]} if body.return_text else {})
            for index in best
        ],
        answer,
    )


async def nearness(service: Service, body: Similarity, model: str | None) -> Response:
    said = body.parameters or SimilarityParameters()
    given = body.inputs
    request = TaskRequest(
        "sentence-similarity",
        {"text": [given.source_sentence] * len(given.sentences), "text_pair": given.sentences},
        {} if said.prompt_name is None else {"prompt_name": said.prompt_name},
        model=model,
        fields={
            "text": "inputs.source_sentence",
            "text_pair": "inputs.sentences",
            "prompt_name": "parameters.prompt_name",
        },
        once=("inputs.source_sentence",),
        cutting=replace(said.cutting, hint=f"parameters.{said.cutting.hint}"),
    )
    answer = await similar(service, request)
    return reply(answer.answers, answer)


async def in_thread(pool: Executor, work: Callable[[], Response]) -> Response:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def resident_model(service: Service, name: str | None) -> Resident:
    """The model of a name, the first one without. Raises NotFound."""
    return next(iter(service.models.values())) if name is None else service.model(name)


def decoded(model: Resident, rows: list[list[int]], skip: bool) -> list[str]:
    """The texts of ids, without special tokens where these are to be skipped."""
    size = len(model.tokenizer)
    for index, row in enumerate(rows):
        if (over := max(row, default=0)) >= size:
            raise Invalid(f"ids.{index}", f"id {over} is not among the {size} of the vocabulary")
    return [model.tokenizer.decode(row, skip_special_tokens=skip) for row in rows]


def tokens(model: Resident, texts: list[str], special: bool, most: int) -> list[list[dict[str, Any]]]:
    """The tokens of each text, with the characters that they stand for; a special token stands for none. Raises
    TooLarge for more than `most`, before each becomes an object of ten times its size.
    """
    tokenizer = model.tokenizer
    ragged = tokenizer.encode_ragged(texts, max_length=most, truncation="do_not_truncate")
    count = len(ragged.input_ids)
    if count > most:
        raise TooLarge(f"{count} tokens, at most {most} are allowed", field="inputs")
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    columns = zip(texts, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    return [
        [
            {"id": token, "text": name, "special": True, "start": None, "stop": None}
            if mask
            else {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}
            for token, name, (start, stop), mask in zip(
                ids, tokenizer.convert_ids_to_tokens(ids), offsets, masks, strict=True
            )
        ]
        for text, ids, offsets, masks in columns
    ]
