"""What the routes answer, for the OpenAPI document; the answers themselves are made by the tasks."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Label(Out):
    """`above` only where the model's calibration has thresholds: whether the score has reached the label's own, null
    for a label without one.
    """

    label: str
    score: float
    above: bool | None = None


class Entity(Out):
    """A token (`entity`, `index`), or with an aggregation strategy several together (`entity_group`)."""

    entity: str | None = None
    entity_group: str | None = None
    score: float
    index: int | None = None
    word: str
    start: int
    end: int


class Fill(Out):
    score: float
    token: int
    token_str: str
    sequence: str


class Span(Out):
    answer: str
    score: float
    start: int
    end: int


class Chosen(Out):
    """`choice` is the best one's index, from 0."""

    choice: int
    score: float
    scores: list[float]


class Written(Out):
    generated_text: str


class Likelihood(Out):
    """`perplexity` is null for a text with nothing to foretell."""

    perplexity: float | None
    log_likelihood: float
    tokens: int


class Rank(Out):
    index: int
    score: float
    text: str | None = None


class DocumentOutput(BaseModel):
    """The caller's document, with whatever fields it has."""

    text: str


class Ranked(Out):
    index: int
    relevance_score: float
    document: DocumentOutput | str | None = None


class SparseValue(Out):
    """A token's id, and its weight, above 0."""

    index: int
    value: float


class Token(Out):
    """`start` and `stop` are characters of the text; special tokens have none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Vector(Out):
    object: str
    index: int
    embedding: list[float] | str


class Usage(Out):
    prompt_tokens: int
    total_tokens: int


class Vectors(Out):
    object: str
    model: str
    data: list[Vector]
    usage: Usage


class TokenVectors(Out):
    """A vector a token; of several encodings, by their names."""

    object: str
    index: int
    embeddings: list[list[float]] | list[list[int]] | list[str] | dict[str, Any]


class MultiVectors(Out):
    object: str
    model: str
    data: list[TokenVectors]
    usage: Usage


class ModelCard(Out):
    id: str
    object: str
    created: int
    owned_by: str


class ModelCards(Out):
    object: str
    data: list[ModelCard]


class Rerankings(Out):
    """`object`, `created`, and documents that are strings, are infinity's."""

    object: str | None = None
    created: int | None = None
    id: str
    model: str
    results: list[Ranked]
    usage: dict[str, int]
    meta: dict[str, Any]


class Classifications(Out):
    """infinity's: of each text all labels, best first."""

    object: str
    data: list[list[Label]]
    model: str
    usage: Usage
    id: str
    created: int


class Scored(Out):
    index: int
    object: str
    score: float


class Scores(Out):
    id: str
    object: str
    created: int
    model: str
    data: list[Scored]
    usage: Usage


class Pooled(Out):
    """A vector, a vector a token, or the scores of labels; base64 of little-endian fp32."""

    index: int
    object: str
    data: list[float] | list[list[float]] | str


class Poolings(Out):
    id: str
    object: str
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class CohereVectors(Out):
    """`embeddings`: by encoding; at `/v1/embed`, where none is named, the bare vectors."""

    response_type: str
    id: str
    embeddings: dict[str, list[list[float]] | list[list[int]] | list[str]] | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]


class PlainError(Out):
    """`error_type`: the kind of error in one word."""

    error: str
    error_type: str


class OpenAIErrorPart(Out):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Out):
    error: OpenAIErrorPart


class CohereError(Out):
    message: str


class JinaError(Out):
    detail: str
