"""The bodies of text-embeddings-inference's routes."""

from typing import Annotated

from pydantic import Field

from xlmr_ray.serve.protocols.body import Asked, Body, Nothing, Several, Texts, Truncatable

Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Inputs = str | Several[str] | Several[Id] | Several[Several[Id]]
OneOrPair = Annotated[Several[str], Field(min_length=1, max_length=2)]


class Embed(Truncatable, Asked):
    """`inputs`: texts, or ids of this model's tokenizer (those of `/tokenize`). `normalize` null: as the model's folder
    says.
    """

    inputs: Inputs
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    parameters: Nothing | None = None


class EmbedAll(Truncatable, Asked):
    """As for `/embed`; the vectors are the model's states as they are, whatever `normalize` says: clients send it, and
    text-embeddings-inference passes over it, too.
    """

    inputs: Inputs
    normalize: bool | None = None
    prompt_name: str | None = None
    parameters: Nothing | None = None


class Predict(Truncatable, Asked):
    """`"a text"`, `["a text", "and its pair"]`, or several of both: `[["a text"], ["a text", "and its pair"]]`."""

    inputs: str | OneOrPair | Several[OneOrPair]
    raw_scores: bool | None = False


class Compared(Body):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: Several[str]


class SimilarityParameters(Truncatable):
    """A prompt goes before each sentence."""

    prompt_name: str | None = None


class Similarity(Asked):
    """The measure is the model's own, cosine where it names none."""

    inputs: Compared
    parameters: SimilarityParameters | None = None


class RerankBody(Truncatable, Asked):
    """`raw_scores`: the head's numbers as they are, not brought between 0 and 1. `top_n`: the best so many."""

    query: str
    texts: Several[str]
    raw_scores: bool | None = False
    return_text: bool | None = False
    top_n: Annotated[int, Field(ge=1)] | None = None


class TokenizeBody(Asked):
    """A prompt goes before each text."""

    inputs: Texts
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


class Decode(Asked):
    """Ids of one text or of several."""

    ids: Several[Id] | Several[Several[Id]]
    skip_special_tokens: bool | None = True
