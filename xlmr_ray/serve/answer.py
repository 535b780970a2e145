"""What the service answers, with what it took."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Answer:
    """`answers`: one a document, as transformers' pipeline has it. `table`: the columns of a batch job. `tokens` of
    its sequences, and the wall clock's seconds: tokenizing with checking, waiting, and from the first of its
    batches to the last. Of its sequences, `repeated` were equal to another one of it, and the results of `known` others
    had been kept.
    """

    answers: list[Any]
    table: pa.Table
    tokens: int
    tokenize_s: float
    queue_s: float
    inference_s: float
    repeated: int = 0
    known: int = 0
