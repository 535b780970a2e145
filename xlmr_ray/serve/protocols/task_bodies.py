"""The bodies of `/tasks/<task>`: `{"inputs": …, "parameters": {…}}`, with each task's options by its own names."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xlmr_ray.serve.protocols.body import (
    Asked,
    Body,
    Count,
    Long,
    Nothing,
    Parameters,
    Refused,
    Several,
    Texts,
    Truncatable,
)
from xlmr_ray.serve.protocols.tei_bodies import Similarity

__all__ = ["Similarity"]

Share = Annotated[float, Field(ge=0, le=1)]


class LongTexts(Parameters):
    """`max_length` in tokens; longer texts are `cut`, which the header `x-truncated` tells, or read in `windows` that
    share `stride` tokens.
    """

    max_length: Count | None = None
    long: Long | None = None
    stride: Annotated[int, Field(ge=0)] | None = None


class Pair(Body):
    text: str
    text_pair: str


class ClassificationParameters(LongTexts):
    """All labels if `top_k` is not given."""

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Count | None = None


class TextClassificationBody(Asked):
    """A text, a pair, or a list of either kind."""

    inputs: Texts | Pair | Several[Pair]
    parameters: ClassificationParameters | None = None


class TokenParameters(LongTexts):
    """Long texts go by windows if not said otherwise, so that nothing is lost."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Several[str] | None = None


class TokenClassificationBody(Asked):
    inputs: Texts
    parameters: TokenParameters | None = None


class FillParameters(LongTexts):
    """`targets`: the only words to score."""

    targets: Texts | None = None
    top_k: Count | None = None


class FillMaskBody(Asked):
    """Texts with the tokenizer's mask, `<mask>`, in them."""

    inputs: Texts
    parameters: FillParameters | None = None


class Question(Body):
    question: str
    context: str


class AnsweringParameters(Parameters):
    align_to_words: bool | None = None
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    handle_impossible_answer: bool | None = None
    max_answer_len: Count | None = None
    max_question_len: Count | None = None
    max_seq_len: Count | None = None
    top_k: Count | None = None


def in_inputs(body: Any) -> Any:
    if not isinstance(body, dict) or "inputs" in body or not {"question", "context"} & body.keys():
        return body
    inputs = {name: body[name] for name in ("question", "context") if name in body}
    return {"inputs": inputs} | {name: value for name, value in body.items() if name not in inputs}


class QuestionAnsweringBody(Asked):
    """`question` and `context` may also stand in the body itself."""

    inputs: Question | Several[Question]
    parameters: AnsweringParameters | None = None

    @model_validator(mode="before")
    @classmethod
    def bare(cls, body: Any) -> Any:
        return in_inputs(body)


class ZeroShotParameters(LongTexts):
    """`candidate_labels`: a list, or one text with commas between them."""

    candidate_labels: Annotated[Texts, Field(min_length=1)]
    hypothesis_template: str | None = None
    multi_label: bool | None = None


class ZeroShot(Asked):
    inputs: Texts
    parameters: ZeroShotParameters


class Choices(Body):
    text: str
    choices: Annotated[Several[str], Field(min_length=1)]


class MultipleChoiceParameters(Parameters):
    max_length: Count | None = None


class MultipleChoiceBody(Asked):
    inputs: Choices | Several[Choices]
    parameters: MultipleChoiceParameters | None = None


class GenerationParameters(Parameters):
    """`stop` are strings that end a text. The options that end in "not supported" are those of
    text-generation-inference that have no counterpart here.
    """

    do_sample: bool | None = None
    max_length: Count | None = None
    max_new_tokens: Count | None = None
    min_new_tokens: Count | None = None
    min_p: Share | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    num_beams: Count | None = None
    num_return_sequences: Count | None = None
    length_penalty: float | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    return_full_text: bool | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: Several[str] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    adapter_id: Refused = None
    best_of: Refused = None
    decoder_input_details: Refused = None
    details: Refused = None
    frequency_penalty: Refused = None
    grammar: Refused = None
    top_n_tokens: Refused = None
    truncate: Refused = None
    typical_p: Refused = None
    watermark: Refused = None

    def options(self) -> dict[str, Any]:
        said = super().options()
        if "stop" in said:
            said["stop_sequence"] = said.pop("stop")
        return said


class TextGenerationBody(Asked):
    """A prompt, or a list of them. Of one that is too long, the end is kept."""

    inputs: Texts
    parameters: GenerationParameters | None = None
    stream: Refused = None


class WithVectorOptions(Truncatable, Asked):
    """Texts longer than the model are refused; with `truncate` they are cut."""

    inputs: Texts
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class EmbeddingBody(WithVectorOptions):
    parameters: Nothing | None = None


class ExtractionParameters(Parameters):
    """`layers`: the hidden states to give, 0 for the embeddings', negative ones from the end."""

    layers: Annotated[Several[int], Field(min_length=1)] | None = None
    pooling: Literal["cls", "mean", "max", "mean_sqrt_len"] | None = None
    max_length: Count | None = None


class Extraction(WithVectorOptions):
    """A vector a text, of models that are served for `embedding`; with `parameters`, and of other models, the hidden
    states: a vector a token, which take `truncate` and `truncation_direction` of the other options.
    """

    parameters: ExtractionParameters | None = None


class Query(Body):
    query: str
    documents: Several[str]


class RankingParameters(LongTexts):
    """`top_n` and `return_documents` go with a query."""

    function_to_apply: Literal["sigmoid", "none"] | None = None
    top_n: Count | None = None
    return_documents: bool | None = None


class Ranking(Asked):
    """A query with documents gives them best first; pairs of query and document give a score each."""

    inputs: Query | Pair | Several[Pair]
    parameters: RankingParameters | None = None


class PerplexityParameters(LongTexts):
    pass


class PerplexityBody(Asked):
    inputs: Texts
    parameters: PerplexityParameters | None = None


class PseudoPerplexityParameters(LongTexts):
    """`passes`: how many times a text is read, each with every so-many-th token masked; `all`: one at a time, exact."""

    passes: Count | Literal["all"] | None = None


class PseudoPerplexityBody(Asked):
    inputs: Texts
    parameters: PseudoPerplexityParameters | None = None
