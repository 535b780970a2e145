"""From a protocol to the service and back: ask it, name the protocol's fields in its errors, and answer with the times
and tokens in the headers.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi.responses import Response

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.requests import CURRENT, Empty, Invalid, ServiceError, TooLarge
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.task_request import TaskRequest


async def ask(service: Service, request: TaskRequest, most: int | None = None) -> Answer:
    """The service's answer to a request of at most so many inputs, `limits.inputs` if None."""
    role, first = next(iter(request.columns.items()))
    check_count(service, first, request.field(role), most)
    try:
        return await service.answer(request)
    except ServiceError as error:
        name, _, index = (error.field or "").rpartition(".")
        if name in request.once and index.isdecimal():
            error.field = name
        raise


def check_count(service: Service, inputs: Sequence[Any], field: str, most: int | None = None) -> None:
    """Raises Empty or TooLarge for a number of inputs that a request cannot have: `most` are allowed, `limits.inputs`
    if None.
    """
    most = service.limits.inputs if most is None else most
    if not inputs:
        raise Empty("the list is empty, expected at least one", field=field)
    if len(inputs) > most:
        raise TooLarge(f"{len(inputs)} inputs, at most {most} are allowed", field=field)


def in_parameters(options: Mapping[str, Any], **others: str) -> dict[str, str]:
    """The fields of a body whose options are under `parameters`."""
    return {name: f"parameters.{name}" for name in options} | others


def reply(value: Any, answer: Answer | None = None) -> Response:
    """JSON of the value, with numpy arrays in it; headers tell what its answer took."""
    return json_response(value, {} if answer is None else headers([answer], cut_indices(answer)))


def json_response(value: Any, headers: Mapping[str, str]) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(body, media_type="application/json", headers=dict(headers))


def headers(answers: Sequence[Answer], cut: Sequence[int]) -> dict[str, str]:
    """Tokens and whole milliseconds, by the names of text-embeddings-inference, and the indices of inputs that
    were cut.
    """
    context = CURRENT.get()
    spent = {
        "x-tokenization-time": sum(answer.tokenize_s for answer in answers),
        "x-queue-time": sum(answer.queue_s for answer in answers),
        "x-inference-time": sum(answer.inference_s for answer in answers),
    }
    total = time.monotonic() - context.began if context is not None else sum(spent.values())
    spent |= {"x-total-time": total, "x-compute-time": total - spent["x-queue-time"]}
    named = {name: str(max(round(seconds * 1000), 0)) for name, seconds in spent.items()}
    named["x-compute-tokens"] = str(sum(answer.tokens for answer in answers))
    return named | ({"x-truncated": ",".join(map(str, sorted(cut)))} if cut else {})


def cut_indices(answer: Answer) -> list[int]:
    """Which inputs lost tokens to the model's length."""
    if "truncated" not in answer.table.column_names:
        return []
    indices: list[int] = np.flatnonzero(answer.table["truncated"].to_numpy(zero_copy_only=False)).tolist()
    return indices


def check_ids(service: Service, rows: Sequence[Sequence[int]], field: str) -> None:
    """Raises TooLarge for more ids than a request may have tokens."""
    ids, most = sum(map(len, rows)), service.limits.request_tokens
    if ids > most:
        raise TooLarge(f"{ids} ids, at most {most} are allowed", field=field)


def texts_of_ids(tokenizer: Any, ids: Sequence[Sequence[int]], field: str) -> list[str]:
    """The texts that are tokenized to these ids, special tokens around them or not. Raises Invalid for ids that no text
    gives, such as those of another model's tokenizer.
    """
    size = len(tokenizer)
    for index, row in enumerate(ids):
        over = max(row, default=0)
        if over >= size:
            raise Invalid(f"{field}.{index}", f"id {over} is not among the {size} of this model's vocabulary")
    bare = [inner(tokenizer, list(row)) for row in ids]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in bare]
    again = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    for index, (row, back) in enumerate(zip(bare, again, strict=True)):
        if row != back:
            raise Invalid(f"{field}.{index}", "this model's tokenizer gives these ids for no text: send the text")
    return texts


def inner(tokenizer: Any, row: list[int]) -> list[int]:
    """Without the special tokens around a text."""
    if row[:1] == [tokenizer.cls_token_id]:
        row = row[1:]
    return row[:-1] if row[-1:] == [tokenizer.eos_token_id] else row
