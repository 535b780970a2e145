"""Documents longer than a sequence as windows that overlap, and the windows' results joined again.

The windows are those of the `tokenizers` library: each has the special tokens around it, and as many of the text's
tokens as there is room for; the next one begins with the last `stride` of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import documents
from xlmr_ray.tokenizer.ragged import Template
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


def default_stride(max_length: int) -> int:
    """An eighth of a window: at 512 tokens, what is up to 64 tokens long lies whole in some window, for 14 % more
    tokens to compute.
    """
    return max_length // 8


def check_stride(task: str, name: str, stride: object, room: int) -> None:
    """Raises UserError where an option is no number of tokens that windows with room for so many could share."""
    if not isinstance(stride, int) or isinstance(stride, bool) or not 0 <= stride < room:
        raise UserError(
            f"task {task}: {name} must be a whole number from 0 to {room - 1}, less than the {room} tokens of text "
            f"in a window; got {stride!r}"
        )


def windows(
    texts: pa.ChunkedArray,
    tokenizer: XLMRobertaTokenizer,
    *,
    max_length: int,
    stride: int | None,
    offsets: bool = False,
) -> pa.Table:
    """D texts to an encoded table of N >= D windows of at most `max_length` tokens, `stride` of them shared by
    neighbours; with `stride=None`, to one sequence a text, cut at `max_length` and flagged.

    Columns: `input_ids: list<int32>`; `document: int32`, the text of each window, ascending; `own: int32`, the tokens
    that no window of the text before it has, special tokens counted once a text; `truncated: bool`, whether the text
    lost tokens. With `offsets` also `start` and `end: list<int32>`, a token's characters in its text, -1 for the
    special tokens around it. Raises TokenizerError with the index of a text that cannot be encoded.
    """
    ragged = tokenizer.encode_ragged(
        texts.combine_chunks(),
        max_length=max_length,
        truncation="do_not_truncate" if stride is not None else "longest_first",
        offsets=offsets,
    )
    template = Template.of(tokenizer.backend_tokenizer, pair=False)
    head, tail = len(template.head), len(template.tail)
    begins, lengths = ragged.row_splits[:-1], ragged.lengths - (head + tail)
    document, first, last = window_spans(
        lengths, max_length - head - tail, stride or 0, left=tokenizer.truncation_side == "left"
    )
    where = np.arange(len(ragged.input_ids))
    splits = ragged.row_splits
    if len(document) > len(lengths):
        begin, end = begins[document], ragged.row_splits[1:][document]
        where = gather_indices(
            np.stack([begin, begin + head + first, end - tail], axis=1),
            np.stack([np.full_like(first, head), last - first, np.full_like(first, tail)], axis=1),
        )
        splits = row_splits(last - first + (head + tail))
    columns = {
        "input_ids": lists(splits, ragged.input_ids[where]),
        "document": pa.array(document, pa.int32()),
        "own": pa.array(own_tokens(document, first, last, head + tail), pa.int32()),
        "truncated": pa.array(ragged.truncated[document]),
    }
    if ragged.offsets is not None and ragged.sequence_ids is not None:
        characters = np.where(ragged.sequence_ids[:, None] < 0, np.int32(-1), ragged.offsets)[where]
        columns |= {"start": lists(splits, characters[:, 0]), "end": lists(splits, characters[:, 1])}
    return pa.table(columns)


def window_spans(
    lengths: NDArray[np.int64], room: int | NDArray[np.int64], stride: int, *, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where the windows of D texts of so many tokens lie that hold `room` of them each (a number, or one a text):
    `document`, first token and last token + 1, each `(N)`. A text that fits has one window. With `left`, windows are
    counted from the end of a text.
    """
    room = np.broadcast_to(room, lengths.shape)
    step = room - stride
    counts = np.where(lengths > room, -((room - lengths) // np.maximum(step, 1)) + 1, 1)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    if not left:
        first = number * step[document]
        return document, first, np.minimum(first + room[document], lengths[document])
    last = lengths[document] - (counts[document] - 1 - number) * step[document]
    return document, np.maximum(last - room[document], 0), last


def own_tokens(
    document: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64], special: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tokens `(N)` of each window that none before it of its text has; the `special` ones (a number, or one a window)
    are the first window's.
    """
    opens = np.ones(len(document), np.bool_)
    opens[1:] = document[1:] != document[:-1]
    before = np.where(opens, first, np.roll(last, 1))
    own: NDArray[np.int64] = last - before + np.where(opens, special, 0)
    return own


def gather_indices(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of all spans, one after another."""
    starts, lengths = starts.ravel(), lengths.ravel()
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def joined_parts(
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int64] | int, NDArray[np.int64] | int]], rows: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Sequences `(rows)` made of parts, each some ids, and which of them: from where, and how many, a number or one a
    row. Returns the ids `(T)`, the rows' splits `(rows + 1)` and the number of the part that each token is of `(T)`.
    """
    bases = row_splits(np.array([len(ids) for ids, _, _ in parts]))
    begins = np.stack([np.broadcast_to(base + begin, rows) for base, (_, begin, _) in zip(bases, parts, strict=False)])
    counts = np.stack([np.broadcast_to(count, rows) for _, _, count in parts])
    where = gather_indices(begins.T, counts.T)
    part = np.repeat(np.tile(np.arange(len(parts)), rows), counts.T.ravel())
    return np.concatenate([ids for ids, _, _ in parts])[where], row_splits(counts.sum(axis=0)), part


def row_splits(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Lengths `(N)` to splits `(N + 1)`."""
    return np.concatenate([[0], np.cumsum(lengths)])


def lists(splits: NDArray[np.int64], values: NDArray[np.int32]) -> pa.Array:
    """Flat values as `list<int32>`, without copying them."""
    return pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pa.array(values, pa.int32()))


def flat(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column of lists, one row's after another's."""
    return column.combine_chunks().flatten()


def first_rows(values: pa.Array, encoded: pa.Table) -> pa.Array:
    """A value a document as a column of an encoded table fresh from `windows`: in the document's first row, null in
    the others.
    """
    of_row = encoded["document"].to_numpy()
    again = np.zeros(len(of_row), np.bool_)
    again[1:] = of_row[1:] == of_row[:-1]
    return values.take(pa.array(of_row, mask=again))


def document_splits(encoded: pa.Table) -> NDArray[np.int64]:
    """The rows of each of an encoded table's D documents: document d's are `splits[d]` to `splits[d + 1]`. Documents
    of which no row is left do not count.
    """
    of_row = documents(encoded)
    return np.concatenate([[0], np.flatnonzero(np.diff(of_row)) + 1, [len(of_row)]])[: None if len(of_row) else 1]


def document_tokens(encoded: pa.Table) -> NDArray[np.int32]:
    """Tokens `(D)` of each document as one sequence would have them: those that windows share count once."""
    return summed(encoded["own"].to_numpy(), document_splits(encoded)).astype(np.int32)


def summed(values: NDArray[Any], splits: NDArray[np.int64]) -> NDArray[Any]:
    """Rows `(N, ...)` to the sums `(D, ...)` over each document's."""
    sums: NDArray[Any] = np.add.reduceat(values, splits[:-1], axis=0)
    return sums


def averaged(values: NDArray[np.floating], encoded: pa.Table) -> NDArray[np.float64]:
    """Numbers of windows `(N, ...)` to their documents' means `(D, ...)`, each window weighted by its own tokens."""
    own = encoded["own"].to_numpy().astype(np.float64)
    splits = document_splits(encoded)
    weights = own.reshape(-1, *[1] * (values.ndim - 1))
    totals = summed(own, splits).reshape(-1, *[1] * (values.ndim - 1))
    mean: NDArray[np.float64] = summed(values * weights, splits) / totals
    return mean
