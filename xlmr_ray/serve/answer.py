"""What the service answers, with what it took."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Answer:
    """`answers`: one a document, as transformers' pipeline has it. `table`: the columns of a batch job. `tokens` that
    the engine computed, and the wall clock's seconds: tokenizing with checking, waiting, and from the first of its
    batches to the last.
    """

    answers: list[Any]
    table: pa.Table
    tokens: int
    tokenize_s: float
    queue_s: float
    inference_s: float
