"""`/tasks/<task>`: a URL a task, as `huggingface_hub.InferenceClient(base_url=…)` asks it; tasks that it does not know
answer what `pipeline()` gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from fastapi.routing import APIRoute

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols import responses
from xlmr_ray.serve.protocols import task_bodies as bodies
from xlmr_ray.serve.protocols.any_task import add_route
from xlmr_ray.serve.protocols.body import Model
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import as_base64, embedded
from xlmr_ray.serve.protocols.info import Info, info
from xlmr_ray.serve.protocols.reply import ask, check_count, in_parameters, reply
from xlmr_ray.serve.protocols.tei import error_body, nearness
from xlmr_ray.serve.requests import ErrorBody, Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.tasks.registry import TASKS
from xlmr_ray.tasks.rerank import rerank
from xlmr_ray.validation import listed

LABELS = list[list[responses.Label]]
ENTITIES = list[responses.Entity] | list[list[responses.Entity]]
FILLS = list[responses.Fill] | list[list[responses.Fill]] | list[list[list[responses.Fill]]]
SPANS = responses.Span | list[responses.Span] | list[list[responses.Span]]
SCORED = list[responses.Label] | list[list[responses.Label]]
CHOSEN = responses.Chosen | list[responses.Chosen]
WRITTEN = list[responses.Written] | list[list[responses.Written]]
LIKELY = responses.Likelihood | list[responses.Likelihood]
RANKED = list[responses.Ranked] | float | list[float]
VECTORS = list[list[float]] | list[str]
STATES = VECTORS | list[float] | list[list[list[float]]] | list[list[list[list[float]]]]


OfTexts = (
    bodies.TokenClassificationBody
    | bodies.FillMaskBody
    | bodies.TextGenerationBody
    | bodies.PerplexityBody
    | bodies.PseudoPerplexityBody
)
WithParameters = (
    OfTexts | bodies.TextClassificationBody | bodies.QuestionAnsweringBody | bodies.ZeroShot | bodies.MultipleChoiceBody
)


def errors(path: str) -> ErrorBody | None:
    return error_body if path.startswith("/tasks/") else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["Tasks"])

    def is_served(task: str) -> bool:
        return not service.models or service.has(task, None)

    def described(task: str, answer: Any, summary: str) -> dict[str, Any]:
        show = is_served(task)
        return documented(f"POST /tasks/{task}", answer, responses.PlainError, summary=summary, show=show)

    async def texts(task: str, body: OfTexts, model: str | None) -> tuple[Any, Answer]:
        """Of one text its answer, of a list a list."""
        answer = await ask_task(service, task, body, model, {"text": listed(body.inputs)})
        return (answer.answers[0] if isinstance(body.inputs, str) else answer.answers), answer

    @routes.post("/tasks/text-classification", **described("text-classification", LABELS, "Labels of texts or pairs"))
    async def text_classification(body: bodies.TextClassificationBody, model: Model = None) -> Response:
        return await labelled(service, body, body.which(model))

    @routes.post("/tasks/token-classification", **described("token-classification", ENTITIES, "Entities in texts"))
    async def token_classification(body: bodies.TokenClassificationBody, model: Model = None) -> Response:
        return reply(*await texts("token-classification", body, body.which(model)))

    @routes.post("/tasks/fill-mask", **described("fill-mask", FILLS, "What fits in place of <mask>"))
    async def fill_mask(body: bodies.FillMaskBody, model: Model = None) -> Response:
        return reply(*await texts("fill-mask", body, body.which(model)))

    @routes.post("/tasks/question-answering", **described("question-answering", SPANS, "Answers found in a context"))
    async def question_answering(body: bodies.QuestionAnsweringBody, model: Model = None) -> Response:
        given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        columns = {"question": [one.question for one in given], "context": [one.context for one in given]}
        answer = await ask_task(service, "question-answering", body, body.which(model), columns)
        return reply(answer.answers if isinstance(body.inputs, list) else answer.answers[0], answer)

    @routes.post(
        "/tasks/zero-shot-classification", **described("zero-shot-classification", SCORED, "Labels of the caller's own")
    )
    async def zero_shot(body: bodies.ZeroShot, model: Model = None) -> Response:
        answer = await ask_task(
            service, "zero-shot-classification", body, body.which(model), {"text": listed(body.inputs)}
        )
        scored = [
            [{"label": label, "score": score} for label, score in zip(one["labels"], one["scores"], strict=True)]
            for one in answer.answers
        ]
        return reply(scored[0] if isinstance(body.inputs, str) else scored, answer)

    @routes.post(
        "/tasks/multiple-choice", **described("multiple-choice", CHOSEN, "Which of several choices fits a text")
    )
    async def multiple_choice(body: bodies.MultipleChoiceBody, model: Model = None) -> Response:
        given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        columns: dict[str, list[Any]] = {
            "text": [one.text for one in given],
            "choices": [one.choices for one in given],
        }
        answer = await ask_task(service, "multiple-choice", body, body.which(model), columns)
        return reply(answer.answers if isinstance(body.inputs, list) else answer.answers[0], answer)

    @routes.post("/tasks/text-generation", **described("text-generation", WRITTEN, "What follows on a prompt"))
    async def text_generation(body: bodies.TextGenerationBody, model: Model = None) -> Response:
        return reply(*await texts("text-generation", body, body.which(model)))

    @routes.post("/tasks/perplexity", **described("perplexity", LIKELY, "How well a causal model foretells texts"))
    async def perplexity(body: bodies.PerplexityBody, model: Model = None) -> Response:
        return reply(*await texts("perplexity", body, body.which(model)))

    @routes.post(
        "/tasks/pseudo-perplexity", **described("pseudo-perplexity", LIKELY, "How well a masked model guesses texts")
    )
    async def pseudo_perplexity(body: bodies.PseudoPerplexityBody, model: Model = None) -> Response:
        return reply(*await texts("pseudo-perplexity", body, body.which(model)))

    @routes.post("/tasks/embedding", **described("embedding", VECTORS, "A vector a text"))
    async def embedding(body: bodies.EmbeddingBody, model: Model = None) -> Response:
        return await text_vectors(service, body, body.which(model))

    @routes.post("/tasks/feature-extraction", **described("feature-extraction", STATES, "Vectors of texts or tokens"))
    async def feature_extraction(body: bodies.Extraction, model: Model = None) -> Response:
        pooled = body.parameters is None and service.has("embedding", body.which(model))
        return await (text_vectors if pooled else states)(service, body, body.which(model))

    @routes.post(
        "/tasks/sentence-similarity",
        **described("sentence-similarity", list[float], "How near sentences are to another"),
    )
    async def sentence_similarity(body: bodies.Similarity, model: Model = None) -> Response:
        return await nearness(service, body, body.which(model))

    @routes.post("/tasks/rerank", **described("rerank", RANKED, "Documents by how well they answer a query"))
    async def reranking(body: bodies.Ranking, model: Model = None) -> Response:
        return await ranked(service, body, body.which(model))

    written = {route.path for route in routes.routes if isinstance(route, APIRoute)}
    for name, task in TASKS.items():
        if f"/tasks/{name}" not in written:
            add_route(routes, service, name, task, show=is_served(name))

    @routes.get(
        "/tasks/{task}/info",
        **documented("GET /tasks/{task}/info", Info, responses.PlainError, summary="The model of a task"),
    )
    async def about(task: str, model: Model = None) -> Info:
        return info(service, service.find(task, model))

    return routes


async def ask_task(
    service: Service,
    task: str,
    body: WithParameters,
    model: str | None,
    columns: Mapping[str, Sequence[Any]],
    options: Mapping[str, Any] | None = None,
) -> Answer:
    """The service's answer, with `options` over the body's parameters. Several columns are fields of its `inputs`."""
    said = {} if body.parameters is None else body.parameters.options()
    names = {role: "inputs" if len(columns) == 1 else f"inputs.{role}" for role in columns}
    fields = in_parameters(said) | names
    if "stop_sequence" in said:
        fields["stop_sequence"] = "parameters.stop"
    once = () if isinstance(body.inputs, list) else tuple(names.values())
    return await ask(service, TaskRequest(task, columns, {**said, **(options or {})}, model, fields, once))


async def labelled(service: Service, body: bodies.TextClassificationBody, model: str | None) -> Response:
    """A list of labels a text, also where one text came without a list: so the client expects it."""
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    pairs = [one for one in given if isinstance(one, bodies.Pair)]
    columns: dict[str, list[str]] = {"text": [one for one in given if isinstance(one, str)]}
    if pairs:
        columns = {"text": [one.text for one in pairs], "text_pair": [one.text_pair for one in pairs]}
    top_k = body.parameters.top_k if body.parameters else None
    answer = await ask_task(service, "text-classification", body, model, columns, {"top_k": top_k})
    return reply([[one] if isinstance(one, dict) else one for one in answer.answers], answer)


async def text_vectors(service: Service, body: bodies.WithVectorOptions, model: str | None) -> Response:
    request = TaskRequest(
        "embedding",
        {"text": listed(body.inputs)},
        {"normalize": body.normalize, "prompt_name": body.prompt_name, "dimensions": body.dimensions},
        model=model,
        fields={"text": "inputs"},
        once=("inputs",) if isinstance(body.inputs, str) else (),
        cutting=body.cutting,
    )
    answer = await embedded(service, request)
    as_text = body.encoding_format == "base64"
    return reply([as_base64(one) for one in answer.answers] if as_text else answer.answers, answer)


async def states(service: Service, body: bodies.Extraction, model: str | None) -> Response:
    """A vector a token, `[1, tokens, width]` a text, as transformers' pipeline has it; `[width]` where `pooling` asks
    for one.
    """
    for name in ("normalize", "prompt_name", "dimensions", "encoding_format"):
        if getattr(body, name) is not None:
            raise Invalid(name, "goes with a vector a text, not with the states of tokens: see /tasks/embedding")
    said = {} if body.parameters is None else body.parameters.options()
    single = isinstance(body.inputs, str)
    request = TaskRequest(
        "feature-extraction",
        {"text": listed(body.inputs)},
        {**said, "return_tensors": True},
        model=model,
        fields=in_parameters(said, text="inputs"),
        once=("inputs",) if single else (),
        cutting=body.cutting,
    )
    answer = await ask(service, request)
    arrays = [one.numpy() for one in answer.answers]
    return reply(arrays[0] if single else arrays, answer)


async def ranked(service: Service, body: bodies.Ranking, model: str | None) -> Response:
    """Scores of pairs, or the documents of a query, best first."""
    said = body.parameters.options() if body.parameters else {}
    top_n, with_documents = said.pop("top_n", None), said.pop("return_documents", None)
    given = body.inputs
    if isinstance(given, bodies.Query):
        check_count(service, given.documents, "inputs.documents")
        columns = {"text": [given.query] * len(given.documents), "text_pair": given.documents}
        names = {"text": "inputs.query", "text_pair": "inputs.documents"}
    else:
        if top_n is not None or with_documents is not None:
            unfit = "top_n" if top_n is not None else "return_documents"
            raise Invalid(f"parameters.{unfit}", "goes with a query and its documents")
        pairs = given if isinstance(given, list) else [given]
        columns = {"text": [one.text for one in pairs], "text_pair": [one.text_pair for one in pairs]}
        names = {"text": "inputs.text", "text_pair": "inputs.text_pair"}
    single = isinstance(given, bodies.Pair)
    once = list(names.values()) if single else ["inputs.query"]
    answer = await ask(service, TaskRequest("rerank", columns, said, model, in_parameters(said) | names, once))
    if not isinstance(given, bodies.Query):
        return reply(answer.answers[0] if single else answer.answers, answer)
    best = rerank(
        lambda _: answer.answers,
        given.query,
        given.documents,
        top_n=top_n,
        return_documents=bool(with_documents),
    )
    return reply(best, answer)
