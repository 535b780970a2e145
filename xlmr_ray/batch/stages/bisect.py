"""Rows that make a step raise: the rows are halved until each such row is by itself, and becomes an error row."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.stages.rows import fail_rows
from xlmr_ray.errors import JobFailed, UserError

T = TypeVar("T")


def by_halves(work: Callable[[pa.Table], T], rows: pa.Table, code: str) -> Iterator[T]:
    """The results of `work`, in order, for all rows at once, or where that raises for parts of them.

    A row that raises by itself is given to `work` again as an error row of `code` (or `out_of_memory`).
    What is no row's fault is raised: UserError, JobFailed, an interrupt, and what is raised without any row, too.
    """
    try:
        done = work(rows)
    except BaseException as error:
        if not of_a_row(error):
            raise
        culprit = error
    else:
        yield done
        return
    count = rows.num_rows
    if count > 1:
        yield from by_halves(work, rows.slice(0, count // 2), code)
        yield from by_halves(work, rows.slice(count // 2), code)
        return
    try:
        work(rows.slice(0, 0))
    except BaseException:
        raise culprit from None
    if count == 0:
        raise culprit
    yield work(fail_rows(rows, {0: failure_of(culprit, code)}))


def of_a_row(error: BaseException) -> bool:
    """Whether a row may be to blame. A panic of a Rust extension is no `Exception`, and its class has no home."""
    if isinstance(error, UserError | JobFailed):
        return False
    return isinstance(error, Exception) or is_panic(error)


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def failure_of(error: BaseException, code: str) -> tuple[str, str]:
    """Code and message. The error's own words are left out: they may quote the document."""
    if isinstance(error, MemoryError):
        return codes.OUT_OF_MEMORY, "the row by itself does not fit in the memory of its process"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else f" in {frame.tb_frame.f_code.co_name}"
    return code, f"{type(error).__name__}{where}"
