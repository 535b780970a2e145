"""The bodies of text-embeddings-inference's routes."""

from typing import Annotated

from pydantic import Field

from xlmr_ray.serve.protocols.body import Body, Direction

Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Inputs = str | list[str] | list[Id] | list[list[Id]]
OneOrPair = Annotated[list[str], Field(min_length=1, max_length=2)]


class Cut(Body):
    """Texts longer than the model are refused; with `truncate` they are cut."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None


class Embed(Cut):
    """`inputs`: texts, or ids of this model's tokenizer (those of `/tokenize`). `normalize` null: as the model's folder
    says.
    """

    inputs: Inputs
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbedAll(Cut):
    """As for `/embed`; the vectors are the model's states as they are, whatever `normalize` says: clients send it, and
    text-embeddings-inference passes over it, too.
    """

    inputs: Inputs
    normalize: bool | None = None
    prompt_name: str | None = None


class Predict(Cut):
    """`"a text"`, `["a text", "and its pair"]`, or several of both: `[["a text"], ["a text", "and its pair"]]`."""

    inputs: str | OneOrPair | list[OneOrPair]
    raw_scores: bool | None = False


class Compared(Body):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Cut):
    """A prompt goes before each sentence."""

    prompt_name: str | None = None


class Similarity(Body):
    """The measure is the model's own, cosine where it names none."""

    inputs: Compared
    parameters: SimilarityParameters | None = None


class Rerank(Cut):
    """`raw_scores`: the head's numbers as they are, not brought between 0 and 1."""

    query: str
    texts: list[str]
    raw_scores: bool | None = False
    return_text: bool | None = False


class Tokenize(Body):
    """A prompt goes before each text."""

    inputs: str | list[str]
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


class Decode(Body):
    """Ids of one text or of several."""

    ids: list[Id] | list[list[Id]]
    skip_special_tokens: bool | None = True
