"""Documents longer than the model, as tasks on whole documents take them: cut and flagged, or in windows whose results
are averaged.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import lengths, whole_documents
from xlmr_ray.tasks.task import check_choice
from xlmr_ray.tasks.windows import (
    averaged,
    check_stride,
    default_stride,
    document_splits,
    document_tokens,
    joined_parts,
    lists,
    own_tokens,
    window_spans,
    windows,
)
from xlmr_ray.tokenizer.ragged import Template
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


def check_long(task: str, long: object, stride: object) -> None:
    """Raises UserError where `long` is neither `cut` nor `windows`, or `stride` is given without windows."""
    check_choice(task, "long", long, ("cut", "windows"))
    if long == "cut" and stride is not None:
        raise UserError(f"task {task}: stride {stride!r} is for windows, and long is cut: say long: windows")


def text_room(task: str, max_length: int, added: int) -> int:
    """The tokens of text in a window beside `added` special ones. Raises UserError where there are none."""
    if max_length <= added:
        raise UserError(f"task {task}: max_length {max_length} leaves no room for text beside {added} special tokens")
    return max_length - added


def encode_documents(
    task: str,
    texts: pa.ChunkedArray,
    pairs: pa.ChunkedArray | None,
    tokenizer: XLMRobertaTokenizer,
    *,
    max_length: int,
    long: str,
    stride: int | None,
) -> pa.Table:
    """Texts, or pairs of texts, to an encoded table: with `long` `cut` a sequence each, with `windows` as many as it
    takes, neighbours sharing `stride` tokens (None: an eighth of `max_length`).
    """
    if long == "cut":
        return whole_documents(texts, pairs, tokenizer, max_length)
    room = text_room(task, max_length, tokenizer.num_special_tokens_to_add(pairs is not None))
    if stride is None:
        stride = min(default_stride(max_length), max(room // 2 - 1, 0))
    # Of a pair, one text may take half of the room from the other.
    check_stride(task, "stride", stride, room if pairs is None else room - room // 2)
    if pairs is None:
        return windows(texts, tokenizer, max_length=max_length, stride=stride)
    return pair_windows(texts, pairs, tokenizer, max_length=max_length, stride=stride)


def pair_windows(
    texts: pa.ChunkedArray, pairs: pa.ChunkedArray, tokenizer: XLMRobertaTokenizer, *, max_length: int, stride: int
) -> pa.Table:
    """Pairs to an encoded table with the columns of `windows`: the longer text (the first of two equal ones) goes by
    windows, and the other one is whole in each, or cut, and flagged, where both take more than half of the room.
    """
    single = Template.of(tokenizer.backend_tokenizer, pair=False)
    template = Template.of(tokenizer.backend_tokenizer, pair=True)
    room = max_length - template.added
    sides = [
        tokenizer.encode_ragged(side.combine_chunks(), max_length=max_length, truncation="do_not_truncate")
        for side in (texts, pairs)
    ]
    start = np.stack([side.row_splits[:-1] + len(single.head) for side in sides])
    length = np.stack([side.lengths - single.added for side in sides])
    every, long = np.arange(len(texts)), (length[1] > length[0]).astype(np.int64)
    short = 1 - long
    truncated = length.min(axis=0) > room // 2
    lost = np.where(truncated, length[short, every] - room // 2, 0)
    length[short, every] -= lost
    if tokenizer.truncation_side == "left":
        start[short, every] += lost
    document, first, last = window_spans(length[long, every], room - length[short, every], stride)
    each = np.arange(len(document))
    start, length = start[:, document], length[:, document]
    start[long[document], each] += first
    length[long[document], each] = last - first

    head, middle, tail = (np.array(ids, np.int32) for ids in (template.head, template.middle, template.tail))
    parts = [
        (head, 0, len(head)),
        (sides[0].input_ids, start[0], length[0]),
        (middle, 0, len(middle)),
        (sides[1].input_ids, start[1], length[1]),
        (tail, 0, len(tail)),
    ]
    ids, splits, _ = joined_parts(parts, len(document))
    once = length[short[document], each] + template.added
    return pa.table(
        {
            "input_ids": lists(splits, ids),
            "document": pa.array(document, pa.int32()),
            "own": pa.array(own_tokens(document, first, last, once), pa.int32()),
            "truncated": pa.array(truncated[document]),
        }
    )


def length_fields(long: str) -> list[tuple[str, pa.DataType]]:
    """What the output says of a document's length: its `tokens`, special ones too, whether it was `truncated`, and in
    how many `windows` it was read, where these are asked for.
    """
    counted = [("windows", pa.int32())] if long == "windows" else []
    return [("tokens", pa.int32()), ("truncated", pa.bool_()), *counted]


def length_columns(long: str, encoded: pa.Table) -> list[pa.Array | pa.ChunkedArray]:
    """The columns of `length_fields`, a row a document."""
    if long == "cut":
        return [pa.array(lengths(encoded)), encoded["truncated"]]
    splits = document_splits(encoded)
    truncated = encoded["truncated"].take(pa.array(splits[:-1]))
    return [pa.array(document_tokens(encoded)), truncated, pa.array(np.diff(splits).astype(np.int32))]


def by_document(values: NDArray[np.floating], long: str, encoded: pa.Table) -> NDArray[np.floating]:
    """A sequence's numbers `(N, ...)` to a document's `(D, ...)`: its windows' mean by their own tokens."""
    return values if long == "cut" else averaged(values, encoded)
