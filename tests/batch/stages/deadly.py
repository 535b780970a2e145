"""The two steps of the pipeline with a model, in which some texts raise, hang, or kill the process."""

import os
import re
import signal

import pyarrow as pa

from xlmr_ray.batch.stages.encode import Encode, ScoredShard
from xlmr_ray.batch.stages.packs import TokenizeEach
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.rows import good_rows
from xlmr_ray.batch.stages.tokenize import Tokenize, Tokenized


class PanicException(BaseException):
    """As pyo3 makes it: outside `Exception`, and of no module that could be imported."""


def suffer(rows: pa.Table, step: str) -> None:
    """Does what the texts say, `KILL in encode` for example."""
    for text in rows["text"].take(good_rows(rows)).to_pylist():
        what, _, where = text.partition(" in ")
        if where != step:
            continue
        if what == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "EXIT":
            os._exit(7)
        if what == "HANG":
            re.match("(a+)+$", "a" * 60 + "b")  # for centuries, and no other thread of Python runs
        if what == "PANIC":
            raise PanicException(f"byte index 1 is not a char boundary; it is inside of `{text}`")
        if what == "RAISE":
            raise IndexError(text)
        if what == "FULL":
            raise MemoryError


class DeadlyTokenize(Tokenize):
    def tokenized(self, rows: pa.Table) -> Tokenized:
        suffer(rows, "tokenize")
        return super().tokenized(rows)


class DeadlyTokenizeEach(TokenizeEach):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.step.__class__ = DeadlyTokenize


class DeadlyEncode(Encode):
    def scored(self, tables: dict[str, pa.Table], rows: pa.Table) -> ScoredShard:
        suffer(rows, "encode")
        return super().scored(tables, rows)
