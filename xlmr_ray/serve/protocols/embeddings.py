"""Vectors and how near they are, for the protocols that ask for either."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.models import Model
from xlmr_ray.serve.protocols.reply import ask, check_count, check_ids, cut_indices, texts_of_ids
from xlmr_ray.serve.requests import Invalid, NotFound, ServiceError
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.tasks.sentence_similarity import similarities
from xlmr_ray.tasks.vector_precision import BITS, stored

# What prompts are called for each type of input, the likelier first.
QUERY, PASSAGE = ("query", "search_query"), ("passage", "document", "search_document")
INPUT_TYPES = {
    "query": QUERY,
    "search_query": QUERY[::-1],
    "document": PASSAGE,
    "passage": PASSAGE,
    "search_document": PASSAGE[::-1],
    "classification": ("classification",),
    "clustering": ("clustering",),
}


async def given_texts(
    service: Service,
    inputs: str | list[str] | list[int] | list[list[int]],
    model: Model,
    field: str,
    most: int | None = None,
) -> tuple[list[str], bool]:
    """The texts of inputs that may be ids of the model's tokenizer, and whether one came alone."""
    if isinstance(inputs, str):
        return [inputs], True
    ids = [one for one in inputs if isinstance(one, int)]
    check_count(service, [ids] if ids else inputs, field, most)
    rows = [ids] if ids else [one for one in inputs if isinstance(one, list)]
    if not rows:
        return [one for one in inputs if isinstance(one, str)], False
    check_ids(service, rows, field)
    return await service.in_pool(lambda: texts_of_ids(model.tokenizer, rows, field)), bool(ids)


async def embedded(service: Service, request: TaskRequest, most: int | None = None) -> Answer:
    """The vectors of a request's texts, of which `most` are allowed, `limits.inputs` if None; options that are None are
    left to the model.
    """
    said = {name: value for name, value in request.options.items() if value is not None}
    served = service.find("embedding", request.model)
    if "prompt_name" in said:
        prompt(service, served.model, said["prompt_name"], request.field("prompt_name"))
    return await ask(service, replace(request, options=said, model=served.model.name), most)


def prompts_of(service: Service, model: Model) -> Mapping[str, str]:
    """A model's prompts by name: its folder's, and those that the settings give its task `embedding`."""
    if "embedding" in model.tasks:
        return service.find("embedding", model.name).bound.known_prompts or {}
    return {} if model.sentence is None else model.sentence.prompts


def prompt_for(service: Service, model: Model, kind: str | None) -> str | None:
    """The name of the model's prompt for a type of input; see `prompt_among`."""
    return prompt_among(prompts_of(service, model), kind)


def prompt_among(prompts: Mapping[str, str], kind: str | None) -> str | None:
    """The name of the prompt for a type of input; None where there are no prompts. Raises Invalid where there are only
    others.
    """
    if kind is None or not prompts:
        return None
    # sentence-transformers writes empty prompts into folders that have none.
    there = sorted((name for name in INPUT_TYPES[kind] if name in prompts), key=lambda name: not prompts[name])
    found = next(iter(there), None)
    if found is None:
        raise Invalid("input_type", f"the model has no prompt for it, it has: {', '.join(prompts)}")
    return found


def prompt(service: Service, model: Model, name: str | None, field: str) -> str:
    """The text that the model has under a name; none without one. Raises Invalid for a name it has not."""
    if name is None:
        return ""
    prompts = prompts_of(service, model)
    if name not in prompts:
        known = ", ".join(f'"{known}"' for known in prompts)
        raise Invalid(field, f"the model has no such prompt. Available prompts: [{known}]")
    return prompts[name]


async def similar(service: Service, request: TaskRequest) -> Answer:
    """How near each of the request's pairs is, by the model's own measure: of a model that is not served for
    `sentence-similarity`, from its embeddings.
    """
    check_count(service, request.columns["text_pair"], request.field("text_pair"))
    try:
        served = service.find("sentence-similarity", request.model)
    except NotFound as missing:
        if not service.has("embedding", request.model):
            raise missing from None
        served = service.find("embedding", request.model)
        folder = served.model.sentence
        measure = (folder.similarity if folder is not None else None) or "cosine"
        return await compared(service, replace(request, model=served.model.name), measure)
    if "prompt_name" in request.options:
        prompt(service, served.model, request.options["prompt_name"], request.field("prompt_name"))
    return await ask(service, replace(request, model=served.model.name))


async def compared(service: Service, request: TaskRequest, measure: str) -> Answer:
    """How near a request's N pairs are by the `measure`, from vectors in full precision whatever is served; a text that
    is in several is embedded once.
    """
    left, right = request.columns["text"], request.columns["text_pair"]
    index = {text: number for number, text in enumerate(dict.fromkeys([*left, *right]))}
    first, second = [index[text] for text in left], [index[text] for text in right]
    texts = replace(
        request,
        task="embedding",
        columns={"text": list(index)},
        options={**request.options, "precision": "float32"},
        fields={**request.fields, "text": "text"},
        once=(),
    )
    try:
        answer = await embedded(service, texts, most=len(index))
    except ServiceError as error:
        role, _, number = (error.field or "").rpartition(".")
        if role == "text":
            role, side = ("text_pair", second) if int(number) in second else ("text", first)
            name = request.field(role)
            error.field = name if name in request.once else f"{name}.{side.index(int(number))}"
        raise

    def scores() -> list[float]:
        vectors: NDArray[np.float64] = np.asarray(answer.answers, np.float64)
        near = similarities(measure, vectors[first], vectors[second])
        return list(near.astype(np.float32).tolist())

    cut = set(cut_indices(answer))
    truncated = [one in cut or other in cut for one, other in zip(first, second, strict=True)]
    return replace(answer, answers=await service.in_pool(scores), table=pa.table({"truncated": truncated}))


def as_base64(vector: Any) -> str:
    """Little-endian fp32."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def in_encoding(vectors: NDArray[Any], kind: str) -> Any:
    """Vectors `(N, width)` as Cohere's and Jina's clients ask for them; 8 bits a number are as they were computed."""
    if kind == "base64":
        return [as_base64(vector) for vector in vectors]
    return stored(vectors, kind, None) if kind in BITS else vectors
