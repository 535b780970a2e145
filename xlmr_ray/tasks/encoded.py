"""Encoded tables, and the step that most tasks share: a sequence a document, cut at the model's length and flagged."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import Ragged, XLMRobertaTokenizer


def length_limit(task: str, asked: int | None, config_limit: int, tokenizer: XLMRobertaTokenizer) -> int:
    """The most tokens a sequence may have: what is asked for, or what model and tokenizer allow. Raises UserError for
    more than the model has.
    """
    if asked is None:
        return min(config_limit, tokenizer.model_max_length)
    if asked > config_limit:
        raise UserError(
            f"task {task}: max_length {asked} is more than the {config_limit} tokens that the model has positions for"
        )
    return asked


def ids_column(ragged: Ragged) -> pa.Array:
    """The ids as `list<int32>`, a row a sequence, without copying them."""
    return pa.ListArray.from_arrays(pa.array(ragged.row_splits, pa.int32()), pa.array(ragged.input_ids, pa.int32()))


def whole_documents(
    texts: pa.ChunkedArray, pairs: pa.ChunkedArray | None, tokenizer: XLMRobertaTokenizer, max_length: int
) -> pa.Table:
    """Texts, or pairs of texts, to an encoded table of one sequence each: `input_ids`, `truncated` (tokens were cut
    off).
    """
    ragged = tokenizer.encode_ragged(
        texts.combine_chunks(),
        None if pairs is None else pairs.combine_chunks(),
        max_length=max_length,
        truncation="longest_first",
    )
    return pa.table({"input_ids": ids_column(ragged), "truncated": pa.array(ragged.truncated)})


def ragged(lists: pa.ListArray | pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The flat values `(T)` and the row splits `(N + 1)` of lists of int32."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    splits = lists.offsets.to_numpy().astype(np.int64)
    return lists.flatten().to_numpy(), splits - splits[0]


def lengths(encoded: pa.Table) -> NDArray[np.int32]:
    """Tokens of each sequence of an encoded table."""
    counts: NDArray[np.int32] = pa.compute.list_value_length(encoded["input_ids"]).to_numpy()
    return counts


def targets_of(encoded: pa.Table) -> pa.ChunkedArray | None:
    """The targets of an encoded table, None where its task has none."""
    return encoded["targets"] if "targets" in encoded.column_names else None


def documents(encoded: pa.Table) -> NDArray[np.int64]:
    """The document of each sequence of an encoded table, ascending."""
    if "document" not in encoded.column_names:
        return np.arange(encoded.num_rows)
    of_sequence: NDArray[np.int64] = encoded["document"].to_numpy().astype(np.int64)
    return of_sequence


def keep_documents(encoded: pa.Table, kept: NDArray[np.bool_]) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The encoded table of the documents that are `kept` (one flag a document), numbered anew, and which of its
    sequences stayed.
    """
    of_sequence = documents(encoded)
    stayed: NDArray[np.bool_] = kept[of_sequence]
    left = encoded.filter(pa.array(stayed))
    if "document" in encoded.column_names:
        numbers = (np.cumsum(kept) - 1)[of_sequence[stayed]]
        left = left.set_column(encoded.column_names.index("document"), "document", pa.array(numbers, pa.int32()))
    return left, stayed
