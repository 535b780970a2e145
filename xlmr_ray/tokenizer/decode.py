"""Ids back to text."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from xlmr_ray.errors import UserError

TokenIds = int | Sequence[int] | Sequence[Sequence[int]] | Any  # numpy arrays and tensors too


def as_ids(token_ids: Any) -> Any:
    """An int, a list of ints, or a list of such, from what holds ids: lists, arrays, tensors, a call's result."""
    if isinstance(token_ids, Mapping):
        token_ids = token_ids["input_ids"]
    if hasattr(token_ids, "tolist"):
        return token_ids.tolist()
    if isinstance(token_ids, list) and all(type(one) is int for one in token_ids):
        return token_ids
    return [as_ids(one) for one in token_ids] if isinstance(token_ids, (list, tuple)) else token_ids


def decode(backend: Tokenizer, ids: int | list[int], *, skip_special_tokens: bool, clean_up: bool) -> str:
    """The text of one sequence. As in transformers, ids beyond the vocabulary give nothing. Raises UserError for what
    is no id, such as the -100 of ignored labels.
    """
    listed = [ids] if isinstance(ids, int) else ids
    try:
        # One sequence as a batch: only so does the library let other threads run meanwhile.
        (text,) = backend.decode_batch([listed], skip_special_tokens=skip_special_tokens)
    except (OverflowError, TypeError):
        wrong = next((one for one in listed if not isinstance(one, int) or not 0 <= one < 2**32), listed)
        raise UserError(
            f"cannot decode {wrong!r}: ids are integers from 0 on; replace ignored labels by the padding id before"
        ) from None
    return clean_up_tokenization(text) if clean_up else text


def clean_up_tokenization(text: str) -> str:
    """Take out the spaces before punctuation and English contractions that joining tokens left."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
